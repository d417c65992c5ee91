# SPDX-License-Identifier: Apache-2.0
"""Make a finding from the catalogue's record and the names of the case."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from ensemblekit.diagnose.lint.findings import Finding
from ensemblekit.faults.catalogue import fault
from ensemblekit.faults.fault import Severity
from ensemblekit.repository.read import ModelFolder
from ensemblekit.repository.textproto import Key

__all__ = ["did_you_mean", "found"]


def found(
    code: str,
    folder: ModelFolder,
    at: tuple[Key, ...] = (),
    *,
    file: Path | None = None,
    line: int | None = None,
    severity: Severity | None = None,
    detail: str = "",
    fix: str = "",
    consequence: bool = False,
    **values: object,
) -> Finding:
    """Return a finding.

    Args:
        code: The fault.
        folder: The model's folder.
        at: The path of the field in its config; the line is looked up there.
        file: The file, if it is not the config.
        line: The line, if it is known otherwise.
        severity: Instead of the catalogue's.
        detail: What is special here; stands before the catalogue's reason.
        fix: Instead of the catalogue's.
        consequence: Whether it follows from another finding.
        values: For the words that Triton will say.
    """
    entry = fault(code)
    place = file or (folder.config_path if folder.has_config else folder.path)
    return Finding(
        code=code,
        severity=severity or entry.severity,
        model=folder.name,
        file=place,
        line=line if line or file or not at else folder.source.line(*at),
        says=entry.says(model=folder.name, **values),
        why=f"{detail} {entry.cause}".strip(),
        fix=fix or entry.fix,
        link=entry.link,
        consequence=consequence or entry.consequence,
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question with the nearest known word, empty if none is near.

    >>> did_you_mean("text_inptu", ["text_input", "stream"])
    ' Did you mean "text_input"?'
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""
