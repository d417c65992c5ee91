# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit workshop`: prepare and check a seat, serve many of them, see who is how far."""

from pathlib import Path

import click

from ensemblekit.cli.options import EXIT_FAILED, FOLDER, PATH, SECONDS, WORD, device, engine, model, release

__all__ = ["workshop"]


@click.group()
def workshop() -> None:
    """A workshop: seats prepared before, one shared server, and who is how far."""


@workshop.command()
@click.option("--seats", type=click.IntRange(1, 500), default=30, help="How many keys are made.")
@click.option(
    "--host", type=WORD, default="127.0.0.1", help="Address to listen on; 0.0.0.0 is all. Then keys are needed."
)
@click.option("--port", type=int, default=8000, help="HTTP; gRPC and metrics are the next two.")
@click.option("--rate", type=click.IntRange(1), default=10, help="Requests a second of one seat; more wait.")
@click.option("--at-once", type=click.IntRange(1), default=16, help="Requests of one seat under way at one time.")
@release
@click.option("--flavour", type=WORD, default="base-plus-vllm", help="A flavour that loads ensembles.")
@engine
@device
@model
@click.option("--timeout", type=SECONDS, default=600.0, help="Seconds the server may take to load.")
def serve(seats: int, host: str, port: int, rate: int, at_once: int, timeout: float, **parameters: str) -> None:
    """Start one server for many seats and keep it until Ctrl-C."""
    from ensemblekit.settings import check_settings
    from ensemblekit.workshop.gate import Limits
    from ensemblekit.workshop.shared import LARGEST, SharedServer, own_address

    values = {name.upper(): value for name, value in parameters.items()}
    settings = check_settings(**values, READY_TIMEOUT_S=timeout)
    click.echo(f"Starting {settings}")
    limits = Limits(rate=rate, at_once=at_once)
    with SharedServer(settings, seats=seats, host=host, port=port, limits=limits) as shared:
        click.echo("Ready. Ctrl-C stops it. A seat sets, in the parameters of its lesson:")
        for seat in shared.seats:
            click.echo(f'  {seat.name}  PROVIDER = "attach"  URL = "{seat.url(own_address(host), port)}"')
        most = ", ".join(f"{name} {value}" for name, value in LARGEST.items())
        click.echo(f"  limits    {rate} requests/s and {at_once} at once for each seat; {most} for each request")
        click.echo(f"  logs      {shared.server.log_path}\n            {shared.gate.log_path}")
        click.echo("Who is how far, from another shell: ensemblekit workshop seats")
        shared.keep(click.echo)


@workshop.command()
@click.argument("folder", type=FOLDER, required=False)
def seats(folder: Path | None) -> None:
    """Show what each seat of a shared server has asked and done; FOLDER is its gate's, by default the newest."""
    from rich.console import Console
    from rich.table import Table

    from ensemblekit.errors import ParameterError
    from ensemblekit.workshop.seats import seat_rows
    from ensemblekit.workshop.shared import latest_gate

    found = folder or latest_gate()
    if found is None:
        raise ParameterError(
            "show the seats", found="no shared server was started here", hint="start one: `ensemblekit workshop serve`"
        )
    table = Table("seat", "requests", "refused", "last", "tasks done", title=str(found))
    for row in seat_rows(found):
        table.add_row(row.name, str(row.requests), str(row.refused), row.ago(), row.progress())
    Console().print(table)


@workshop.command()
@click.option("--quick", is_flag=True, help="For a workshop without vLLM: no weights.")
def prepare(quick: bool) -> None:
    """Fetch everything for a seat, then prove it: with the network off, Lab opens and an exercise runs."""
    from rich.console import Console

    from ensemblekit.workshop.seat import prepare_seat

    with Console(stderr=True).status("looking into the cache") as line:
        how = prepare_seat(quick=quick, progress=line.update)
    click.echo(f"ready: Lab opened and exercise 1 was solved with the network off ({how})")


@workshop.command()
@click.option("--quick", is_flag=True, help="For a workshop without vLLM: no weights.")
@click.option("--url", type=WORD, help="The shared server, as it was given to this seat.")
@click.pass_context
def check(context: click.Context, quick: bool, url: str | None) -> None:
    """Is this seat ready? One line says yes, or what to do; exit code 1: no."""
    from ensemblekit.workshop.seat import what_is_missing

    missing = what_is_missing(quick=quick, url=url or "")
    click.echo(f"not ready: {missing}" if missing else "ready", err=bool(missing))
    context.exit(EXIT_FAILED if missing else 0)


@workshop.command()
@click.argument("target", type=PATH, default="slides.html")
def slides(target: Path) -> None:
    """Make slides from the lessons: one page for each heading, in one HTML file."""
    from ensemblekit.workshop.slides import write_slides

    click.echo(f"{target}: {write_slides(target)} slides")
