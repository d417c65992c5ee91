# SPDX-License-Identifier: Apache-2.0
"""The faults suite: short within `scripts/test`, long with `ENSEMBLEKIT_FAULTS=long scripts/test tests/faults`.

What was tried and what held goes into `faults.json` of the run folder.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from ensemblekit.paths import new_run_id, runs_dir

LONG = os.environ.get("ENSEMBLEKIT_FAULTS") == "long"


class Report:
    """Figures by name: how many were tried, how many held, and what was measured."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def count(self, name: str, held: bool, **measured: Any) -> None:
        """Note one trial."""
        row = self.rows.setdefault(name, {"tried": 0, "held": 0})
        row["tried"] += 1
        row["held"] += held
        for key, value in measured.items():
            row[f"{key}_max"] = round(max(row.get(f"{key}_max", 0), value), 2)

    def note(self, name: str, **figures: Any) -> None:
        """Note what was measured once."""
        self.rows.setdefault(name, {}).update(figures)


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """The figures of this run, written when it ends."""
    made = Report()
    yield made
    folder = runs_dir() / new_run_id("faults")
    folder.mkdir(parents=True)
    (folder / "faults.json").write_text(json.dumps({"long": LONG, "faults": made.rows}, indent=1) + "\n")
    for name, row in made.rows.items():
        print(f"\n{name}: {row}", end="")
    print(f"\n{folder / 'faults.json'}")
