# SPDX-License-Identifier: Apache-2.0
"""What a reader works on: `ensemblekit lab` opens the lessons, `exercises` makes and checks those of the workshop."""

import os
import secrets
from pathlib import Path

import click

from ensemblekit.cli.options import EXIT_FAILED, PATH, SECONDS, WORD
from ensemblekit.errors import UnsupportedMachine

__all__ = ["exercises", "lab"]

CELL_TIMEOUT_S = 600.0  # a start of a server with weights on a slow disk


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--quick", is_flag=True, help="With the small environment: a Python stand-in answers in place of vLLM.")
@click.option("--reset", type=WORD, metavar="LESSON", help="Put a notebook back as it was; the old one is kept.")
@click.option("--url", type=WORD, help="A server for the pages that can use one: host:port, or host:port,host:port.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[JUPYTER OPTIONS]")
def lab(quick: bool, reset: str | None, url: str | None, arguments: tuple[str, ...]) -> None:
    """Open JupyterLab on work/, a copy of the lessons that git ignores; other options go to jupyter lab."""
    from importlib.util import find_spec

    from ensemblekit.lesson.lab import lab_command, make_working_copy, reset_notebook, work_dir
    from ensemblekit.servers.attach import URL_VARIABLE, AttachedServer
    from ensemblekit.servers.running import LAB_VARIABLE

    folder = work_dir()
    if reset:
        fresh, kept = reset_notebook(reset, folder)
        click.echo(f"{fresh} is as delivered" + (f"; yours is kept as {kept}" if kept else ""))
        return
    if find_spec("jupyterlab") is None:
        raise UnsupportedMachine(
            "open JupyterLab", found="it is not installed in this environment", hint="use `scripts/lab`"
        )
    if url:
        AttachedServer.at(url).start()
        os.environ[URL_VARIABLE] = url
    new = make_working_copy(folder)
    if new:
        click.echo(f"{len(new)} notebooks copied to {folder}; they are yours to change")
    os.environ[LAB_VARIABLE] = secrets.token_hex(4)
    words = lab_command(folder, arguments)
    os.execv(words[0], words)  # noqa: S606 - Lab takes this process's place, with its signals


@click.group(invoke_without_command=True)
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if one is not current.")
@click.option("--fresh", multiple=True, metavar="NUMBER", help="Begin an exercise anew; its answers get another name.")
@click.pass_context
def exercises(context: click.Context, check: bool, fresh: tuple[str, ...]) -> None:
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


@exercises.command("check")
@click.argument("notebook", type=PATH)
@click.option("--timeout", type=SECONDS, default=CELL_TIMEOUT_S, help="Seconds that one cell may take.")
@click.pass_context
def check_answers(context: click.Context, notebook: Path, timeout: float) -> None:
    """Run a participant's NOTEBOOK and print a line for each task; exit code 0 if all are solved."""
    from ensemblekit.batch.answers import check_notebook

    results = check_notebook(notebook, cell_timeout_s=timeout)
    click.echo("\n".join(str(result) for result in results))
    context.exit(0 if all(result.solved for result in results) else EXIT_FAILED)
