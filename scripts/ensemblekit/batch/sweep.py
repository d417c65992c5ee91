# SPDX-License-Identifier: Apache-2.0
"""What a run was asked for, kept in its folder, so that a run that was stopped goes on; and sets of parameters."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensemblekit.errors import ParameterError

__all__ = ["RunPlan", "read_sets"]

PLAN = "plan.json"
SETS_HINT = "a list of parameter sets, for example `- {RELEASE: 24.08, ENGINE: stand-in}`"


@dataclass(frozen=True)
class RunPlan:
    """What `ensemblekit run` was asked for.

    Attributes:
        only: As `choose_notebooks` takes them.
        given: Parameters by name, as text.
        quick: Whether the stand-in takes the place of vLLM.
        cell_timeout_s: How long a cell may take.
        sets: Parameters of each run of a sweep, beside those given; empty for a single run.
    """

    only: Sequence[str]
    given: Mapping[str, str]
    quick: bool
    cell_timeout_s: float
    sets: Sequence[Mapping[str, str]] = ()

    def runs(self, folder: Path) -> list[tuple[Path, dict[str, str]]]:
        """Return the folder and the parameters of each run: the plan's own folder, or one below it for each set."""
        if not self.sets:
            return [(folder, dict(self.given))]
        return [(folder / f"{at:02d}", {**self.given, **one}) for at, one in enumerate(self.sets, 1)]

    def save(self, folder: Path) -> None:
        """Write the plan into a folder, which is made.

        Raises:
            OSError: It cannot be written.
        """
        folder.mkdir(parents=True)
        (folder / PLAN).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "RunPlan":
        """Return the plan of a run's folder.

        Raises:
            ParameterError: There is none.
        """
        try:
            return cls(**json.loads((folder / PLAN).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ParameterError(
                f"go on with the run {folder}", found=f"no plan of a run: {error}", hint="`ensemblekit runs` lists them"
            ) from error


def read_sets(path: Path) -> list[dict[str, str]]:
    """Return the parameter sets of a sweep's YAML file.

    Raises:
        ParameterError: The file is no list of parameter sets.
    """
    import yaml

    try:
        sets = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # noqa: S506 - texts only: 24.10 is no number
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ParameterError(f"read the sweep {path}", found=str(error), hint=SETS_HINT) from error
    if not isinstance(sets, list) or not sets or not all(_is_set(one) for one in sets):
        raise ParameterError(f"read the sweep {path}", found="something else", hint=SETS_HINT)
    return sets


def _is_set(one: Any) -> bool:
    return isinstance(one, dict) and bool(one) and all(isinstance(text, str) for text in [*one, *one.values()])
