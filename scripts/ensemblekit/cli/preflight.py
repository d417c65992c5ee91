# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit preflight`: what this machine can run."""

import click

from ensemblekit.cli.options import EXIT_FAILED, rows_table

__all__ = ["command"]


@click.command()
@click.pass_context
def command(context: click.Context) -> None:
    """Show what this machine can run; exit code 1 if something required is missing."""
    from rich.console import Console

    from ensemblekit.diagnose.preflight import preflight

    rows = preflight()
    Console().print(rows_table(rows, "What this machine can run"))
    context.exit(EXIT_FAILED if any(row.required and not row.fine for row in rows) else 0)
