# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit weights`: the model's checkpoint, fetched and made once."""

import click

from ensemblekit.cli.options import model

__all__ = ["command"]


@click.command()
@model
def command(model: str) -> None:
    """Fetch the pinned model and make its checkpoint, once; prints its folder."""
    from rich.console import Console

    from ensemblekit.assets.weights import ensure_checkpoint

    with Console(stderr=True).status("looking into the cache") as line:
        source = ensure_checkpoint(model, progress=line.update)
    click.echo(source.engine_model)
