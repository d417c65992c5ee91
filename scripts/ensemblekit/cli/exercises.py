# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit exercises`: the workshop's exercises, made from their solutions, and a participant's answers checked."""

from pathlib import Path

import click

from ensemblekit.cli.options import EXIT_FAILED, PATH, SECONDS

__all__ = ["command"]

CELL_TIMEOUT_S = 600.0  # a start of a server with weights on a slow disk


@click.group(invoke_without_command=True)
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if one is not current.")
@click.option("--fresh", multiple=True, metavar="NUMBER", help="Begin an exercise anew; its answers get another name.")
@click.pass_context
def command(context: click.Context, check: bool, fresh: tuple[str, ...]) -> None:
    """Make the workshop's exercises from their solutions, and the Chinese lessons from their texts.

    An exercise with answers in it is never overwritten.
    """
    from ensemblekit.batch.exercises import exercises_dir, outdated_exercises, solutions_dir, write_exercises
    from ensemblekit.batch.translate import LANGUAGE, outdated_translations, write_translations

    if context.invoked_subcommand:
        return
    lessons = solutions_dir().parent
    if check:
        outdated = outdated_exercises(solutions_dir(), exercises_dir())
        outdated += [f"{LANGUAGE}/{name}" for name in outdated_translations(lessons, LANGUAGE)]
        click.echo("\n".join(f"outdated: {name}" for name in outdated) or "Every exercise is current.")
        context.exit(EXIT_FAILED if outdated else 0)
    done = write_exercises(solutions_dir(), exercises_dir(), fresh=fresh)
    rows = [f"answers moved to: {path.name}" for path in done.moved] + [
        f"written: {path.name}" for path in done.written
    ]
    rows += [f"kept, it holds answers: {path.name} (--fresh {path.name[:2]} begins it anew)" for path in done.kept]
    rows += [f"written: {LANGUAGE}/{name}" for name in write_translations(lessons, LANGUAGE)]
    click.echo("\n".join(rows) or "Every exercise is current.")


@command.command("check")
@click.argument("notebook", type=PATH)
@click.option("--timeout", type=SECONDS, default=CELL_TIMEOUT_S, help="Seconds that one cell may take.")
@click.pass_context
def check_answers(context: click.Context, notebook: Path, timeout: float) -> None:
    """Run a participant's NOTEBOOK and print a line for each task; exit code 0 if all are solved."""
    from ensemblekit.batch.answers import check_notebook

    results = check_notebook(notebook, cell_timeout_s=timeout)
    click.echo("\n".join(str(result) for result in results))
    context.exit(0 if all(result.solved for result in results) else EXIT_FAILED)
