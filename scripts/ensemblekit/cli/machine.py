# SPDX-License-Identifier: Apache-2.0
"""What is here and what there is: `ensemblekit preflight`, `releases`, `weights` and `runs`."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemblekit.cli.options import COUNT, EXIT_FAILED, as_json, model, rows_table, runs_dir

if TYPE_CHECKING:
    from ensemblekit.releases import DocumentedRelease

__all__ = ["preflight", "releases", "runs", "weights"]

UNKNOWN = "-"
CAPTION = """run: here, or only documented ("no"). vLLM to ens.: NVIDIA's vLLM image,
nvcr.io/nvidia/tritonserver:NAME-vllm-python-py3; the base image is NAME-py3.
min.: the oldest NVIDIA driver; tested: the one beside it in NVIDIA's matrix;
ens.: does it know ensembles; np 2: may Python models use numpy 2;
-: not known. --json has the source of each row. The lessons use {default}."""
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
@as_json
def releases(as_json: bool) -> None:
    """List the Triton releases: those that the lessons run, and those that are only documented."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ensemblekit.releases import Release, default_release, every_release, minimum_driver

    rows = every_release()
    if as_json:
        click.echo(json.dumps([asdict(row) | _more(row) for row in rows], indent=2))
        return
    names = ("name", "run", "Triton", "vLLM", "Python", "CUDA", "min.", "tested", "GB", "ens.", "np 2")
    caption = CAPTION.format(default=default_release())
    table = Table(box=SIMPLE, padding=0, show_edge=False, caption=caption, caption_justify="left")
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in rows:
        size = f"{row.vllm_image_gb:.3g}" if row.vllm_image_gb else ""
        facts = (row.triton, row.vllm, row.python, row.cuda, minimum_driver(row), row.tested_driver, size)
        numpy = _yes(row.numpy_2_safe) if isinstance(row, Release) else UNKNOWN
        run = "here" if isinstance(row, Release) else "no"
        table.add_row(row.name, run, *(each or UNKNOWN for each in facts), _yes(row.ensemble_in_vllm_image), numpy)
    Console().print(table)


def _more(row: "DocumentedRelease") -> dict[str, object]:
    from ensemblekit.releases import Release, minimum_driver

    return {"links": row.links, "minimum_driver": minimum_driver(row), "run_here": isinstance(row, Release)}


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
