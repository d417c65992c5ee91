# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit probe`: one question, one verdict, one exit code."""

import json
from typing import TYPE_CHECKING

import click

from ensemblekit.cli.options import EXIT_UNUSABLE, WORD, as_json
from ensemblekit.errors import KitError
from ensemblekit.faults.log import without_controls

if TYPE_CHECKING:
    from ensemblekit.diagnose.probe.start import ProbeAnswer

__all__ = ["command"]


@click.command()
@click.argument("target", type=WORD)
@click.option("--static", is_flag=True, help="Read the library; start nothing.")
@click.option("--allow-load", is_flag=True, help="URL: let the server load a throw-away ensemble.")
@as_json
@click.pass_context
def command(context: click.Context, target: str, static: bool, allow_load: bool, as_json: bool) -> None:
    """Does this server know ensembles? Exit code 0: yes, 1: no, 2: could not tell.

    TARGET is release/flavour (24.08/vllm-image), a server's root or its tritonserver, an image, or a URL.
    """
    from ensemblekit.diagnose.probe.target import probe_target

    try:
        answer = probe_target(target, static=static, allow_load=allow_load)
    except (KitError, OSError) as error:
        if as_json:
            facts = {"target": target, "ensembles": None, "verdict": "could not tell", "error": str(error)}
            click.echo(json.dumps(facts | {"exit_code": EXIT_UNUSABLE}, indent=2))
        else:
            click.echo(without_controls(str(error)), err=True)
        context.exit(EXIT_UNUSABLE)
    click.echo(json.dumps(answer.as_dict(), indent=2) if as_json else _text(answer))
    context.exit(answer.exit_code)


def _text(answer: "ProbeAnswer") -> str:
    return f"{answer}\nhow:      {answer.method}, {answer.elapsed_s:.3f} s"
