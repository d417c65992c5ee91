# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit lint`: say before any server starts what a repository will do."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ensemblekit.diagnose.lint.findings import LintReport
from ensemblekit.diagnose.lint.fix import corrections, obstacles
from ensemblekit.diagnose.lint.output import as_json, as_sarif, show_report
from ensemblekit.diagnose.lint.run import lint_repository
from ensemblekit.errors import KitError, ParameterError
from ensemblekit.releases import FLAVOURS, Flavour

__all__ = ["lint"]


def lint(
    repository: Annotated[Path, typer.Argument(help="The folder that holds one folder per model.")],
    release: Annotated[str | None, typer.Option(help="Which Triton it is for (default: 24.08).")] = None,
    flavour: Annotated[
        str | None, typer.Option(help="Which build: vllm-image, base-plus-vllm or custom-build.")
    ] = None,
    python: Annotated[
        Path | None, typer.Option(help="Interpreter or environment of the Python models, to look for numpy 2 in.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of the server, 0 for none.", min=0)] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Show safe corrections as a diff, and ask.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --fix: do not ask.")] = False,
    notes: Annotated[bool, typer.Option("--notes/--no-notes", help="Show notes too.")] = True,
    as_json_text: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    sarif: Annotated[bool, typer.Option("--sarif", help="Print SARIF 2.1.0 instead, for editors and CI.")] = False,
) -> None:
    """Say what a server will refuse in a model repository, and what will load and break later.

    Nothing is started. Exit code 0 without errors, 1 with errors, 2 if the repository cannot be read.
    """
    report = _lint(repository, release, flavour, python, gpus)
    if fix and _correct(report, ask=not yes):
        report = _lint(repository, release, flavour, python, gpus)
    if as_json_text:
        _print(as_json(report))
    elif sarif:
        _print(as_sarif(report))
    else:
        show_report(report, Console(soft_wrap=not sys.stdout.isatty()), notes=notes)
    raise typer.Exit(report.exit_code)


def _lint(
    repository: Path, release: str | None, flavour: str | None, python: Path | None, gpus: int | None
) -> LintReport:
    build = _flavour(flavour)
    return lint_repository(repository, release=release, flavour=build, python=python, gpus=gpus)


def _flavour(name: str | None) -> Flavour | None:
    for flavour in FLAVOURS:
        if name == flavour:
            return flavour
    if name is None:
        return None
    raise ParameterError(
        f"lint for flavour {name!r}",
        found=f"the flavours are {', '.join(FLAVOURS)}",
        hint="choose one of these; without one, a server with ensembles is assumed",
    )


def _print(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def _correct(report: LintReport, *, ask: bool) -> bool:
    """Show the corrections and make them if the reader wants; return whether anything was changed."""
    made = corrections(report)
    status = Console(stderr=True)
    for correction in made:
        status.print(correction.diff, markup=False, highlight=False, soft_wrap=True)
    for words in obstacles(report):
        status.print(words, markup=False, highlight=False, soft_wrap=True)
    if not made:
        status.print("Nothing here can be corrected without knowing what was meant.")
        return False
    if ask and not typer.confirm(f"Make {len(made)} of these changes?" if len(made) > 1 else "Make this change?"):
        return False
    for correction in made:
        try:
            correction.apply()
        except OSError as error:
            raise KitError(
                f"correct {correction.path}",
                found=error.strerror or str(error),
                hint="give yourself the right to write there, or make the change of the diff by hand",
            ) from None
    return True
