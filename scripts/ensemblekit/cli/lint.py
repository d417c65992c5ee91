# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit lint`: say before any server starts what a repository will do."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemblekit.cli.options import PATH, as_json, python, say
from ensemblekit.errors import KitError, one_of

if TYPE_CHECKING:
    from ensemblekit.diagnose.lint.findings import LintReport

__all__ = ["lint"]


@click.command()
@click.argument("repository", type=PATH)
@click.option("--release", help="Which Triton it is for (default: 24.08).")
@click.option("--flavour", help="Which build: vllm-image, base-plus-vllm or custom-build.")
@python
@click.option("--gpus", type=click.IntRange(0), help="GPUs of the server, 0 for none.")
@click.option("--fix", is_flag=True, help="Show safe corrections as a diff, and ask.")
@click.option("--yes", is_flag=True, help="With --fix: do not ask.")
@click.option("--notes/--no-notes", default=True, help="Show notes too.")
@as_json
@click.option("--sarif", is_flag=True, help="Print SARIF 2.1.0 instead, for editors and CI.")
@click.pass_context
def lint(
    context: click.Context,
    /,
    repository: Path,
    flavour: str | None,
    fix: bool,
    yes: bool,
    notes: bool,
    as_json: bool,
    sarif: bool,
    **options: Any,
) -> None:
    """Say what a server will refuse in a model repository, and what will load and break later.

    Nothing is started. Exit code 0 without errors, 1 with errors, 2 if the repository cannot be read.
    """
    from ensemblekit.diagnose.lint import output

    report = _lint(repository, flavour, options)
    if fix and _correct(report, ask=not yes):
        report = _lint(repository, flavour, options)
    if as_json:
        _print(output.as_json(report))
    elif sarif:
        _print(output.as_sarif(report))
    else:
        from rich.console import Console

        output.show_report(report, Console(soft_wrap=not sys.stdout.isatty()), notes=notes)
    context.exit(report.exit_code)


def _lint(repository: Path, flavour: str | None, options: dict[str, Any]) -> "LintReport":
    from ensemblekit.diagnose.lint.run import lint_repository
    from ensemblekit.releases import FLAVOURS

    chosen = one_of("the flavour", flavour, FLAVOURS) if flavour else None
    return lint_repository(repository, flavour=chosen, **options)


def _print(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def _correct(report: "LintReport", *, ask: bool) -> bool:
    """Show the corrections and make them if the reader wants; return whether anything was changed."""
    from rich.console import Console

    from ensemblekit.diagnose.lint.fix import corrections, obstacles
    from ensemblekit.faults.log import without_controls

    made = corrections(report)
    status = Console(stderr=True)
    for correction in made:
        say(status, without_controls(correction.diff))
    for words in obstacles(report):
        say(status, without_controls(words))
    if not made:
        status.print("Nothing here can be corrected without knowing what was meant.")
        return False
    if ask and not click.confirm(f"Make {len(made)} of these changes?" if len(made) > 1 else "Make this change?"):
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
