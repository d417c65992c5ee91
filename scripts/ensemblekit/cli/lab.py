# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit lab`: JupyterLab on a working copy of the lessons; `scripts/lab` sets up what it needs first."""

import os
import secrets

import click

from ensemblekit.cli.options import WORD
from ensemblekit.errors import UnsupportedMachine

__all__ = ["command"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--quick", is_flag=True, help="With the small environment: a Python stand-in answers in place of vLLM.")
@click.option("--reset", type=WORD, metavar="LESSON", help="Put a notebook back as it was; the old one is kept.")
@click.option("--url", type=WORD, help="A server for the pages that can use one: host:port, or host:port,host:port.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[JUPYTER OPTIONS]")
def command(quick: bool, reset: str | None, url: str | None, arguments: tuple[str, ...]) -> None:
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
