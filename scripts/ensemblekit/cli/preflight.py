# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit preflight`: what this machine can run."""

import click

from ensemblekit.cli.options import EXIT_FAILED

__all__ = ["command"]


@click.command()
@click.pass_context
def command(context: click.Context) -> None:
    """Show what this machine can run; exit code 1 if something required is missing."""
    from rich.console import Console
    from rich.table import Table

    from ensemblekit.diagnose.preflight import preflight

    table = Table("", "thing", "found", "what it costs to be without it", title="What this machine can run")
    rows = preflight()
    for row in rows:
        lacking = "[red]missing" if row.required else "[yellow]less"
        table.add_row("[green]ok" if row.fine else lacking, row.name, row.found, "" if row.fine else row.without)
    Console().print(table)
    context.exit(EXIT_FAILED if any(row.required and not row.fine for row in rows) else 0)
