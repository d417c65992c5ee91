# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit runs`: what lies under runs/, and a way to make it less."""

import json
import re
import shutil
from pathlib import Path

import click

from ensemblekit.cli.options import COUNT, runs_dir

__all__ = ["command"]

RUN_NAME = re.compile(r"\d{8}-\d{6}-[\w-]+")  # nothing else is ever removed


@click.command()
@click.option("--keep", type=COUNT, metavar="N", help="Remove all but the newest N.", show_default=False)
@runs_dir
def command(keep: int | None, runs_dir: Path | None) -> None:
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
