# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit releases`: the table of Triton releases."""

import click

__all__ = ["command"]


@click.command()
def command() -> None:
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
