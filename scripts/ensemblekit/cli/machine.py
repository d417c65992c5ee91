# SPDX-License-Identifier: Apache-2.0
"""What is here and what there is: `ensemblekit preflight`, `releases`, `weights` and `runs`."""

import json
import re
import shutil
from pathlib import Path

import click

from ensemblekit.cli.options import COUNT, EXIT_FAILED, model, rows_table, runs_dir

__all__ = ["preflight", "releases", "runs", "weights"]

RUN_NAME = re.compile(r"\d{8}-\d{6}-[\w-]+")  # nothing else is ever removed


@click.command()
@click.pass_context
def preflight(context: click.Context) -> None:
    """Show what this machine can run; exit code 1 if something required is missing."""
    from rich.console import Console

    from ensemblekit.diagnose.preflight import preflight as look

    rows = look()
    Console().print(rows_table(rows, "What this machine can run"))
    context.exit(EXIT_FAILED if any(row.required and not row.fine for row in rows) else 0)


@click.command()
def releases() -> None:
    """List the Triton releases the lessons know."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ensemblekit.releases import default_release, list_releases

    names = ("release", "Triton", "vLLM", "Python", "CUDA", "GB", "ensembles", "numpy 2")
    caption = f"vLLM to ensembles: NVIDIA's vLLM image. The lessons use {default_release()} unless told otherwise."
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), caption=caption)
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in list_releases():
        facts = (row.name, row.triton, row.vllm, row.python, row.cuda, f"{row.vllm_image_gb:g}")
        table.add_row(*facts, _yes(row.ensemble_in_vllm_image), _yes(row.numpy_2_safe))
    Console().print(table)


def _yes(value: bool) -> str:
    return "[green]yes" if value else "[red]no"


@click.command()
@model
def weights(model: str) -> None:
    """Fetch the pinned model and make its checkpoint, once; prints its folder."""
    from rich.console import Console

    from ensemblekit.assets.weights import ensure_checkpoint

    with Console(stderr=True).status("looking into the cache") as line:
        source = ensure_checkpoint(model, progress=line.update)
    click.echo(source.engine_model)


@click.command()
@click.option("--keep", type=COUNT, metavar="N", help="Remove all but the newest N.", show_default=False)
@runs_dir
def runs(keep: int | None, runs_dir: Path | None) -> None:
    """List the runs, oldest first, with their outcome and size."""
    from ensemblekit.paths import runs_dir as default_runs_dir

    place = runs_dir or default_runs_dir()
    folders = sorted(one for one in place.glob("*") if RUN_NAME.fullmatch(one.name) and one.is_dir())
    gone = folders[:-keep] if keep else []
    for folder in folders:
        size = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
        click.echo(
            f"{folder.name:<36}{_outcome(folder):<24}{size / 1e6:9.1f} MB{'  removed' if folder in gone else ''}"
        )
        if folder in gone:
            shutil.rmtree(folder)
    click.echo(f"{len(folders) - len(gone)} runs in {place}")


def _outcome(folder: Path) -> str:
    """Return how many lessons of a run, or of all runs of a sweep, passed."""
    outcomes = list[str]()
    for file in sorted([*folder.glob("run.json"), *folder.glob("[0-9]*/run.json")]):
        try:
            outcomes += [result["outcome"] for result in json.loads(file.read_text())["results"]]
        except (OSError, ValueError, KeyError, TypeError):
            return "unreadable"
    return f"{outcomes.count('passed')} of {len(outcomes)} passed" if outcomes else ""
