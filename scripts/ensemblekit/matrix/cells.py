# SPDX-License-Identifier: Apache-2.0
"""Cells of the release matrix as values: what was run, what happened, and whether the table expected it."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from ensemblekit.releases import Flavour, get_release, has_ensembles

__all__ = ["Cell", "MatrixProvider", "MatrixResult", "State", "Verdict"]

MatrixProvider = Literal["embedded", "container"]
State = Literal["answered", "refused", "failed", "not run"]
Verdict = Literal["as expected", "UNEXPECTED", "not run"]


@dataclass(frozen=True)
class Cell:
    """One release, flavour and provider, and what happened when it was run.

    Attributes:
        state: `answered` (the ensemble loaded and answered), `refused` (the server refused the ensemble and
            exited), `failed` (anything else) or `not run`.
        detail: The answer, the server's own line, or the reason why the cell was not run.
        seconds: From the start of the process to the answer or the exit; not part of the text.
    """

    release: str
    flavour: Flavour
    provider: MatrixProvider
    engine: str
    state: State
    detail: str
    seconds: float = field(default=0.0, compare=False, repr=False)

    @property
    def expected(self) -> State:
        """What the release table makes one expect."""
        return "answered" if has_ensembles(get_release(self.release), self.flavour) else "refused"

    @property
    def verdict(self) -> Verdict:
        """Whether it happened as the release table says."""
        if self.state == "not run":
            return "not run"
        said = self.state != "refused" or ENSEMBLE_REFUSED in self.detail
        return "as expected" if self.state == self.expected and said else "UNEXPECTED"


@dataclass(frozen=True)
class MatrixResult:
    """All cells of a matrix. Its text holds no times, so that it is the same in every run."""

    cells: tuple[Cell, ...]

    @property
    def unexpected(self) -> tuple[Cell, ...]:
        """The cells that went against the release table."""
        return tuple(cell for cell in self.cells if cell.verdict == "UNEXPECTED")

    @property
    def ran(self) -> tuple[Cell, ...]:
        """The cells that were run."""
        return tuple(cell for cell in self.cells if cell.state != "not run")

    @property
    def seconds(self) -> float:
        """Seconds of all cells together."""
        return sum(cell.seconds for cell in self.cells)

    def table(self) -> str:
        """Return the cells as aligned text: release, flavour, provider, what happened, verdict."""
        rows = [("release", "flavour", "provider", "ensemble", "verdict")]
        rows += [(c.release, c.flavour, c.provider, c.state, c.verdict) for c in self.cells]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def write(self, path: Path) -> Path:
        """Write the cells as JSON and return the file.

        Raises:
            OSError: The file cannot be written.
        """
        rows = [asdict(cell) | {"expected": cell.expected, "verdict": cell.verdict} for cell in self.cells]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seconds": self.seconds, "cells": rows}, indent=2) + "\n")
        return path

    @classmethod
    def read(cls, path: Path) -> "MatrixResult":
        """Read what `write` wrote.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no such file.
        """
        names = {entry.name for entry in fields(Cell)}
        rows = json.loads(path.read_text())["cells"]
        return cls(tuple(Cell(**{name: row[name] for name in names}) for row in rows))

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__
