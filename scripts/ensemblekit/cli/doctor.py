# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit doctor`: everything from the cheapest question to a request, as one report."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ensemblekit.errors import ParameterError

__all__ = ["doctor"]


def doctor(
    repository: Annotated[Path | None, typer.Argument(help="A model repository; by default the kit's own.")] = None,
    server: Annotated[
        str, typer.Option(help="As for probe: release/flavour, a server on disk, an image, or a URL.")
    ] = "24.08/base-plus-vllm",
    release: Annotated[str, typer.Option(help="For lint, where the server does not say it.")] = "",
    engine: Annotated[str, typer.Option(help="The kit's own repository: vllm, or stand-in (Python only).")] = "vllm",
    python: Annotated[Path | None, typer.Option(help="The interpreter that the Python models shall run in.")] = None,
    model: Annotated[str, typer.Option(help="The model to ask; by default the ensemble.")] = "",
    request: Annotated[str, typer.Option(help='Values by input, as JSON: {"TEXT": "Hi"}.')] = "",
    force: Annotated[bool, typer.Option("--force", help="Go on although something is wrong.")] = False,
    ready_timeout: Annotated[float, typer.Option(help="Seconds the server may take to load.", min=1)] = 600.0,
    request_timeout: Annotated[float, typer.Option(help="Seconds an answer may take.", min=1)] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Preflight, probe, lint, then start, then one request; stops before weights are loaded for nothing."""
    from ensemblekit.diagnose.doctor.examination import Plan, examine
    from ensemblekit.diagnose.doctor.report import show_step, show_verdict, write_page

    plan = Plan(
        repository, server, release, engine, python.absolute() if python else None, model, _values(request), force,
        ready_timeout, request_timeout,
    )  # fmt: skip
    console = Console()
    found = examine(plan, (lambda _step: None) if as_json else lambda step: show_step(step, console))
    page = write_page(found)
    if as_json:
        typer.echo(json.dumps(found.as_dict() | {"report": str(page)}, indent=2))
    else:
        show_verdict(found, page, console)
    raise typer.Exit(found.exit_code)


def _values(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ParameterError(
            f"use the request {text!r}", found=str(error), hint='--request \'{"TEXT": "Hi"}\''
        ) from error
    if not isinstance(values, dict):
        raise ParameterError(f"use the request {text!r}", found="no object", hint='--request \'{"TEXT": "Hi"}\'')
    return values
