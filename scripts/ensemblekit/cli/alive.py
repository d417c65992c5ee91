# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit alive`: a probe for containers and Kubernetes that asks the model, not the server."""

from typing import Annotated

import typer

__all__ = ["alive"]

EXIT_NOT_ALIVE = 1


def alive(
    url: Annotated[str, typer.Argument(help="host:port of the server's HTTP endpoint.")],
    model: Annotated[str, typer.Argument(help="The model to ask (default: the ensemble, or the only model).")] = "",
    deadline: Annotated[float, typer.Option(help="Seconds for everything.")] = 5.0,
) -> None:
    """Does a model still answer? Exit code 0: yes, 1: no; one line says what was found."""
    from ensemblekit.diagnose.alive import ask_alive

    found = ask_alive(url, model, deadline_s=deadline)
    typer.echo(str(found), err=not found.alive)
    raise typer.Exit(0 if found.alive else EXIT_NOT_ALIVE)
