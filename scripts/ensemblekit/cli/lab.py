# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit lab`: JupyterLab on a reader's own copy of the lessons, opened on a start page."""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click

from ensemblekit.cli.options import WORD, device
from ensemblekit.errors import UnsupportedMachine
from ensemblekit.paths import repo_root

__all__ = ["command"]


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--quick", is_flag=True, help="Set up without vLLM: a small Python model stands in for it.")
@device
@click.option("--url", type=WORD, help="A server for the pages that can use one: host:port, or host:port,host:port.")
@click.option(
    "--reset", type=WORD, multiple=True, metavar="PAGE", help="Only put a page back, such as 03; keeps yours."
)
@click.option("--prepare", is_flag=True, help="Only make the copy and the start page.")
@click.argument("jupyter", nargs=-1, type=click.UNPROCESSED)
def command(
    quick: bool, device: str, url: str | None, reset: tuple[str, ...], prepare: bool, jupyter: tuple[str, ...]
) -> None:
    """Open JupyterLab on work/, your own copy of the lessons. Other options go to it, for example --port 8890.

    --quick and --device say what scripts/lab sets up where nothing is there yet.
    """
    from ensemblekit.lesson.work import START, make_work, reset_page
    from ensemblekit.servers.attach import URL_VARIABLE, AttachedServer

    folder = make_work()
    for name in reset:
        click.echo(reset_page(name))
    if reset or prepare:
        return
    if not find_spec("jupyterlab"):
        raise UnsupportedMachine(
            "open JupyterLab", found="it is not installed in this environment", hint="`scripts/lab` installs it"
        )
    if url:
        AttachedServer.at(url).start()
        os.environ[URL_VARIABLE] = url
    own = str(repo_root() / "env" / "lab")
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, [os.environ.get("JUPYTER_CONFIG_PATH"), own]))
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    words = [f"--ServerApp.root_dir={folder}", f"--LabApp.default_url=/lab/tree/{START}"]
    words += ["--allow-root"] if os.geteuid() == 0 else []  # containers and rented machines have no other user
    sys.exit(import_module("jupyterlab.labapp").main([*words, *jupyter]))  # here: it needs much that is imported by now
