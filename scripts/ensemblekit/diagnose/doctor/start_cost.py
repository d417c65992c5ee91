# SPDX-License-Identifier: Apache-2.0
"""What a start that must fail would have cost: the models it loads first, their weights, the time it takes."""

import json
from pathlib import Path

from ensemblekit.diagnose.lint import LintReport
from ensemblekit.errors import KitError
from ensemblekit.paths import runs_dir
from ensemblekit.repository.read import read_config

__all__ = ["wasted_by"]

MB = 10**6
RECORDS_LOOKED_AT = 200  # the newest ones
REPORTED_S = 88  # in the report: https://github.com/triton-inference-server/server/issues/7632


def wasted_by(repository: Path | None, report: LintReport | None) -> str:
    """Return what a start would have done for nothing, as the end of "A start would have ...".

    Args:
        repository: The model repository.
        report: What lint said of it, None if it could not be read.
    """
    if repository is None or report is None:
        return ""
    loaded = _loaded_for_nothing(repository, report)
    size = sum(_size(repository / name) for name in loaded)
    files = f" ({size / MB:.0f} MB of files)" if size >= MB else ""
    what = f"loaded {', '.join(loaded)} first{files} and then exited" if loaded else "exited"
    last = _last_ready_s(repository)
    if last is not None:
        return f"{what} with code 1; the last good start of this repository here took {last:.0f} s"
    return f"{what} with code 1; how long that takes is not on record here (in the upstream report {REPORTED_S} s)"


def _loaded_for_nothing(repository: Path, report: LintReport) -> list[str]:
    broken = {finding.model for finding in report.errors}
    names = list[str]()
    for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
        try:
            ensemble = bool(read_config(folder).ensemble_scheduling.step)
        except KitError:
            ensemble = False  # completed by its backend, or broken
        if folder.name not in broken and not ensemble:
            names.append(folder.name)
    return names


def _size(model: Path) -> int:
    """Return the bytes of a model's folder and of the local folders of weights that its model.json names."""
    folders = [model]
    for file in model.glob("*/model.json"):
        try:
            values = json.loads(file.read_text()).values()
        except (OSError, ValueError, AttributeError):
            continue
        folders += {Path(value) for value in values if isinstance(value, str) and value.startswith("/")}
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def _last_ready_s(repository: Path) -> float | None:
    """Return the seconds of the last good start of this repository that is on record."""
    files = sorted(runs_dir().glob("*/records/doctor.json"), reverse=True)[:RECORDS_LOOKED_AT]
    for file in files:
        try:
            record = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if record.get("repository") == str(repository) and record.get("ready_s"):
            return float(record["ready_s"])
    return None
