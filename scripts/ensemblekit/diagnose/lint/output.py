# SPDX-License-Identifier: Apache-2.0
"""A lint report as text for people, as JSON, and as SARIF for editors and CI."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemblekit.diagnose.lint.findings import Finding, LintReport
from ensemblekit.faults.catalogue import FAULTS
from ensemblekit.faults.fault import Severity
from ensemblekit.faults.log import without_controls

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["as_json", "as_sarif", "show_report"]

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
SARIF_VERSION = "2.1.0"
_STYLE = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def show_report(report: LintReport, console: "Console", *, notes: bool = True) -> None:
    """Print a report, its notes in full or only counted."""
    for finding in report.findings:
        if notes or finding.severity != "note":
            _show_finding(finding, console)
    models = f"{len(report.models)} model{'' if len(report.models) == 1 else 's'}"
    lines = [f"{models} read for Triton {report.release} {report.flavour or '(no flavour given)'}"]
    lines += [f"assumed: {sentence}" for sentence in report.assumed]
    lines += [f"not looked at: {words}" for words in report.unseen]
    for line in (*lines, _summary(report)):
        console.print(_plain(line), highlight=False, markup=False, soft_wrap=True)


def _show_finding(finding: Finding, console: "Console") -> None:
    from rich.markup import escape

    head = f"[{_STYLE[finding.severity]}]{finding.severity} {finding.code}[/] {escape(finding.title)}"
    follows = " (follows from another finding)" if finding.consequence else ""
    console.print(f"{head}{follows}", highlight=False, soft_wrap=True)
    rows = [("at", finding.place), ("Triton", finding.says), ("why", finding.why), ("fix", finding.fix)]
    for name, text in [*rows, ("see", finding.link)]:
        if text:
            console.print(_row_of_text(name, _plain(text), console), markup=False, highlight=False, soft_wrap=True)
    console.print()


def _plain(text: str) -> str:
    """Return a text as one line that a terminal shows and does not obey: names may hold anything."""
    return without_controls(text).replace("\n", " ")


def _row_of_text(name: str, text: str, console: "Console") -> str:
    """Return a labelled text, wrapped for a terminal; in a file or a pipe each stays one line."""
    label = f"    {name:<8}"
    if not console.is_terminal:
        return f"{label}{text}"
    return textwrap.fill(
        text, console.width, initial_indent=label, subsequent_indent=" " * len(label), break_long_words=False
    )


def _summary(report: LintReport) -> str:
    kinds: tuple[Severity, ...] = ("error", "warning", "note")
    counts = {name: len(report.of(name)) for name in kinds}
    parts = [f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count]
    if report.loads:
        end = "a server should load all of it"
        if report.unseen:
            end = "nothing that lint looked at would stop a server"
    else:
        refused = sorted({finding.model for finding in report.errors if finding.model})
        end = f"a server will refuse {', '.join(refused) or 'the repository'}, and exit unless told otherwise"
    return f"{', '.join(parts) or 'nothing found'}: {end}"


def _row(finding: Finding) -> dict[str, Any]:
    names = ("code", "severity", "title", "model", "line", "says", "why", "fix", "link", "consequence", "first")
    return {"file": str(finding.file), **{name: getattr(finding, name) for name in names}}


def as_json(report: LintReport) -> dict[str, Any]:
    """Return the report as what `--json` prints."""
    return {
        "repository": str(report.repository),
        "release": report.release,
        "flavour": report.flavour,
        "assumed": list(report.assumed),
        "not_looked_at": list(report.unseen),
        "models": list(report.models),
        "loads": report.loads,
        "findings": [_row(finding) for finding in report.findings],
    }


def as_sarif(report: LintReport) -> dict[str, Any]:
    """Return the report as a SARIF 2.1.0 log, with the catalogue's faults as its rules."""
    from importlib.metadata import version

    found = {finding.code: finding.fault for finding in report.findings}
    entries = [*FAULTS, *(entry for code, entry in found.items() if entry not in FAULTS)]
    codes = [entry.code for entry in entries]
    rules = [
        {
            "id": entry.code,
            "shortDescription": {"text": entry.title},
            "fullDescription": {"text": entry.cause},
            "help": {"text": entry.fix},
            "helpUri": entry.link,
            "defaultConfiguration": {"level": entry.severity},
        }
        for entry in entries
    ]
    driver = {"name": "ensemblekit", "version": version("ensemblekit"), "rules": rules}
    results = [_result(finding, report.repository, codes.index(finding.code)) for finding in report.findings]
    root = {"REPOSITORY": {"uri": f"{report.repository.resolve().as_uri()}/"}}
    run = {"tool": {"driver": driver}, "originalUriBaseIds": root, "results": results}
    return {"$schema": SARIF_SCHEMA, "version": SARIF_VERSION, "runs": [run]}


def _result(finding: Finding, repository: Path, rule: int) -> dict[str, Any]:
    file = finding.file.relative_to(repository) if finding.file.is_relative_to(repository) else finding.file
    physical: dict[str, Any] = {"artifactLocation": {"uri": file.as_posix(), "uriBaseId": "REPOSITORY"}}
    if finding.line:
        physical["region"] = {"startLine": finding.line}
    says = f' Triton: "{finding.says}".' if finding.says else ""
    return {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": finding.severity,
        "message": {"text": f"{finding.title}.{says} {finding.why} {finding.fix}"},
        "locations": [{"physicalLocation": physical}],
    }
