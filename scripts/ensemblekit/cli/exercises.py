# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit exercises`: the workshop's exercises, made from their solutions."""

import click

from ensemblekit.cli.options import EXIT_FAILED

__all__ = ["command"]


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if one is not current.")
@click.pass_context
def command(context: click.Context, check: bool) -> None:
    """Make the workshop's exercises from their solutions: notebooks/solutions to notebooks/exercises."""
    from ensemblekit.batch.exercises import exercises_dir, outdated_exercises, solutions_dir, write_exercises

    outdated = outdated_exercises(solutions_dir(), exercises_dir())
    if not check:
        write_exercises(solutions_dir(), exercises_dir())
    verb = "outdated" if check else "written"
    click.echo("\n".join(f"{verb}: {name}" for name in outdated) or "Every exercise is current.")
    context.exit(EXIT_FAILED if check and outdated else 0)
