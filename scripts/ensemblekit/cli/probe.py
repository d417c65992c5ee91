# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit probe`: one question, one verdict, one exit code."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ensemblekit.errors import KitError

if TYPE_CHECKING:
    from ensemblekit.diagnose.probe.result import ProbeAnswer

__all__ = ["probe"]

EXIT_COULD_NOT_TELL = 2


def probe(
    target: Annotated[
        str,
        typer.Argument(
            help="release/flavour (24.08/vllm-image), a server's root or its tritonserver, an image, or a URL."
        ),
    ],
    static: Annotated[bool, typer.Option("--static", help="Read the library; start nothing.")] = False,
    allow_load: Annotated[
        bool, typer.Option("--allow-load", help="URL: let the server load a throw-away ensemble.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Does this server know ensembles? Exit code 0: yes, 1: no, 2: could not tell."""
    from ensemblekit.diagnose.probe.target import probe_target

    try:
        answer = probe_target(target, static=static, allow_load=allow_load)
    except KitError as error:
        if as_json:
            facts = {"target": target, "ensembles": None, "verdict": "could not tell", "error": str(error)}
            typer.echo(json.dumps(facts | {"exit_code": EXIT_COULD_NOT_TELL}, indent=2))
        else:
            typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_COULD_NOT_TELL) from error
    typer.echo(json.dumps(answer.as_dict(), indent=2) if as_json else _text(answer))
    raise typer.Exit(answer.exit_code)


def _text(answer: "ProbeAnswer") -> str:
    return f"{answer}\nhow:      {answer.method}, {answer.elapsed_s:.3f} s"
