# SPDX-License-Identifier: Apache-2.0
"""Records: the named numbers of a lesson, as JSON beside the executed notebook."""

import json
import math
from pathlib import Path

from ensemblekit.errors import ParameterError
from ensemblekit.paths import current_run_dir

__all__ = ["Value", "read_records", "record_values"]

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]


def record_values(lesson: str, values: dict[str, Value]) -> Path:
    """Write a lesson's values to `records/<lesson>.json` of this run and return the file.

    Raises:
        ParameterError: A number is not finite, which JSON cannot say.
        OSError: The file cannot be written.
    """
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ParameterError(f"record {name}", found=str(value), hint="record None where nothing was measured")
    path = current_run_dir() / "records" / f"{lesson}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    return path


def read_records(run_dir: Path) -> dict[str, dict[str, Value]]:
    """Return the records of a run, by lesson.

    Raises:
        json.JSONDecodeError: A file is not what `record_values` wrote.
    """
    return {path.stem: json.loads(path.read_text()) for path in sorted((run_dir / "records").glob("*.json"))}
