# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit doctor`: everything from the cheapest question to a request, as one report."""

import json
from pathlib import Path
from typing import Any

import click

from ensemblekit.cli.options import JSON_OBJECT, PATH, SECONDS, WORD, as_json, engine, python

__all__ = ["command"]


@click.command()
@click.argument("repository", type=PATH, required=False)
@click.option("--server", type=WORD, default="24.08/base-plus-vllm", help="As probe's TARGET.")
@click.option("--release", default="", help="For lint, where the server does not say it.")
@engine
@python
@click.option("--model", default="", help="The model to ask; by default the ensemble.")
@click.option("--request", type=JSON_OBJECT, help='Values by input, as JSON: {"TEXT": "Hi"}.')
@click.option("--force", is_flag=True, help="Go on although something is wrong.")
@click.option("--ready-timeout", type=SECONDS, default=600.0, help="Seconds the server may take to load.")
@click.option("--request-timeout", type=SECONDS, default=120.0, help="Seconds an answer may take.")
@as_json
@click.pass_context
def command(
    context: click.Context,
    repository: Path | None,
    server: str,
    release: str,
    engine: str,
    python: Path | None,
    model: str,
    request: dict[str, Any] | None,
    force: bool,
    ready_timeout: float,
    request_timeout: float,
    as_json: bool,
) -> None:
    """Preflight, probe, lint, then start, then one request; stops before weights are loaded for nothing.

    REPOSITORY is a model repository; by default the kit's own.
    """
    from rich.console import Console

    from ensemblekit.diagnose.doctor.report import Plan, show_check, show_verdict, write_page
    from ensemblekit.diagnose.doctor.run import examine

    plan = Plan(
        repository=repository,
        server=server,
        release=release,
        engine=engine,
        python=python.absolute() if python else None,
        model=model,
        request=request,
        force=force,
        ready_timeout_s=ready_timeout,
        request_timeout_s=request_timeout,
    )
    console = Console()
    found = examine(plan, (lambda _check: None) if as_json else lambda check: show_check(check, console))
    page = write_page(found)
    if as_json:
        click.echo(json.dumps(found.as_dict() | {"report": str(page)}, indent=2))
    else:
        show_verdict(found, page, console)
    context.exit(found.exit_code)
