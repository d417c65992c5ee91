# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit releases`: the table of Triton releases, those that were run here and those that are documented."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ensemblekit.cli.options import as_json

if TYPE_CHECKING:
    from ensemblekit.releases import DocumentedRelease

__all__ = ["command"]

UNKNOWN = "-"
CAPTION = """run: here, or only documented ("no"). vLLM to ens.: NVIDIA's vLLM image,
nvcr.io/nvidia/tritonserver:NAME-vllm-python-py3; the base image is NAME-py3.
min.: the oldest NVIDIA driver; tested: the one beside it in NVIDIA's matrix;
ens.: does it know ensembles; np 2: may Python models use numpy 2;
-: not known. --json has the source of each row. The lessons use {default}."""


@click.command()
@as_json
def command(as_json: bool) -> None:
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
