# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit matrix`: run the cells with a progress bar, show the table, keep JSON and picture."""

import os
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ensemblekit.matrix.cells import Cell, MatrixResult
from ensemblekit.matrix.picture import save_picture
from ensemblekit.matrix.run import run_matrix
from ensemblekit.paths import RUN_DIR_VARIABLE, current_run_dir, new_run_id, runs_dir

__all__ = ["matrix_command"]

STYLE = {"as expected": "green", "UNEXPECTED": "bold red", "not run": "yellow"}


def matrix_command(releases: Sequence[str], flavours: Sequence[str], providers: Sequence[str], engine: str) -> int:
    """Run the matrix and return the exit code: 1 if a cell went against the release table, or none could be run.

    Raises:
        ParameterError: A release, flavour, provider or engine is unknown.
    """
    os.environ.setdefault(RUN_DIR_VARIABLE, str(runs_dir() / new_run_id("matrix")))
    console = Console()
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console,
        transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("release matrix", total=None)

        def on_cell(cell: Cell, total: int) -> None:
            what = f"{cell.release} {cell.flavour}: {cell.state}"
            bar.update(task, total=total, advance=1, description=what)

        result = run_matrix(releases=releases, flavours=flavours, providers=providers, engine=engine, on_cell=on_cell)
    _show(console, result)
    picture = save_picture(result, current_run_dir() / "matrix.png")
    for file in (current_run_dir() / "matrix.json", picture):
        console.print(f"  {file}", markup=False, highlight=False, soft_wrap=True)
    return 0 if result.ran and not result.unexpected else 1


def _show(console: Console, result: MatrixResult) -> None:
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


def _reason(cell: Cell) -> str:
    return f"{cell.state} ({cell.provider}): {cell.detail}"
