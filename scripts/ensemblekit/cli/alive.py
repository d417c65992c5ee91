# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit alive`: a probe for containers and Kubernetes that asks the model, not the server."""

import click

from ensemblekit.cli.options import EXIT_FAILED, SECONDS, WORD

__all__ = ["command"]


@click.command()
@click.argument("url", type=WORD)
@click.argument("model", default="")
@click.option("--deadline", type=SECONDS, default=5.0, help="Seconds for everything.")
@click.pass_context
def command(context: click.Context, url: str, model: str, deadline: float) -> None:
    """Does a model still answer? Exit code 0: yes, 1: no; one line says what was found.

    URL is host:port of the server's HTTP endpoint; MODEL is by default the ensemble, or the only model.
    """
    from ensemblekit.diagnose.alive import ask_alive

    found = ask_alive(url, model, deadline_s=deadline)
    click.echo(str(found), err=not found.alive)
    context.exit(0 if found.alive else EXIT_FAILED)
