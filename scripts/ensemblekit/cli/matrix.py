# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit matrix`: run the cells with a progress bar, show the table, keep JSON and picture."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ensemblekit.cli.options import EXIT_FAILED, WORD, container_engine
from ensemblekit.paths import RUN_DIR_VARIABLE, current_run_dir, new_run_id, runs_dir

if TYPE_CHECKING:
    from rich.console import Console

    from ensemblekit.matrix.run import Cell, MatrixResult

__all__ = ["command"]

STYLE = {"as expected": "green", "UNEXPECTED": "bold red", "not run": "yellow"}


@click.command()
@click.option("--release", type=WORD, multiple=True, help="A release; may be given again. Default: all.")
@click.option("--flavour", type=WORD, multiple=True, help="A flavour; may be given again. Default: all.")
@click.option("--provider", type=WORD, multiple=True, default=["embedded", "container"], help="May be given again.")
@click.option("--engine", type=WORD, default="stand-in", help="stand-in: seconds a cell; vllm: a minute a cell.")
@container_engine
@click.pass_context
def command(
    context: click.Context,
    release: tuple[str, ...],
    flavour: tuple[str, ...],
    provider: tuple[str, ...],
    engine: str,
    container_engine: str | None,
) -> None:
    """Run every release and flavour and compare with the release table; exit code 1 if one is unexpected."""
    from ensemblekit.servers.container_engine import choose_engine

    choose_engine(container_engine)
    context.exit(_run(release, flavour, provider, engine))


def _run(releases: Sequence[str], flavours: Sequence[str], providers: Sequence[str], engine: str) -> int:
    """Run the matrix and return the exit code: 1 if a cell went against the release table, or none could be run.

    Raises:
        ParameterError: A release, flavour, provider or engine is unknown.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ensemblekit.matrix.picture import save_picture
    from ensemblekit.matrix.run import run_matrix

    os.environ.setdefault(RUN_DIR_VARIABLE, str(runs_dir() / new_run_id("matrix")))
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True)
    with bar:
        task = bar.add_task("release matrix", total=None)

        def on_cell(cell: "Cell", total: int) -> None:
            what = f"{cell.release} {cell.flavour}: {cell.state}"
            bar.update(task, total=total, advance=1, description=what)

        result = run_matrix(releases=releases, flavours=flavours, providers=providers, engine=engine, on_cell=on_cell)
    _show(console, result)
    picture = save_picture(result, current_run_dir() / "matrix.png")
    for file in (current_run_dir() / "matrix.json", picture):
        console.print(f"  {file}", markup=False, highlight=False, soft_wrap=True)
    return 0 if result.ran and not result.unexpected else EXIT_FAILED


def _show(console: "Console", result: "MatrixResult") -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("release", "flavour", "provider", "ensemble", "s", "verdict"):
        table.add_column(name, no_wrap=True, justify="right" if name == "s" else "left")
    for cell in result.cells:
        seconds = f"{cell.seconds:.1f}" if cell.state != "not run" else ""
        verdict = f"[{STYLE[cell.verdict]}]{cell.verdict}"
        table.add_row(cell.release, cell.flavour, cell.provider, cell.state, seconds, verdict)
    console.print(table)
    for text in dict.fromkeys(_reason(cell) for cell in result.cells if cell.state != "answered"):
        console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"  {len(result.ran)} of {len(result.cells)} cells run, {result.seconds:.0f} s", highlight=False)


def _reason(cell: "Cell") -> str:
    return f"{cell.state} ({cell.provider}): {cell.detail}"
