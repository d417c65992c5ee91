# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit bundle create`: from the command line to the plan, with progress."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from ensemblekit.cli.options import PART_SIZE, PATH, WORD, say
from ensemblekit.errors import ParameterError, one_of

if TYPE_CHECKING:
    from ensemblekit.bundle.create import Plan

__all__ = ["bundle"]

PYTHONS = ("3.11", "3.12")


@click.group()
def bundle() -> None:
    """Pack the kit for a host without a network."""


@bundle.command()
@click.argument("folder", type=PATH)
@click.option("--python", default="3.12", help="The other machine's Python.")
@click.option("--device", default="cuda", help="cuda, cpu, or quick (no vLLM).")
@click.option("--have", type=PATH, help="What `pip list --format=json` prints there; that much is not carried.")
@click.option("--release", type=WORD, multiple=True, help="Triton release to bring; may be repeated.  [default: all]")
@click.option("--part-size", type=PART_SIZE, default="1GB", help="Largest file, for example 62MB or 4GiB.")
@click.option("--lab/--no-lab", default=True, help="Bring JupyterLab; only with --device quick can it be left out.")
@click.option("--leave-out", multiple=True, help="Another package not to carry; may be given again.")
@click.option(
    "--python-archive", type=PATH, help="A standalone Python to bring: an install_only file of python-build-standalone."
)
@click.option("--everything", is_flag=True, help="Carry also what text generation never imports.")
def create(
    folder: Path,
    python: str,
    device: str,
    have: Path | None,
    release: tuple[str, ...],
    part_size: int,
    lab: bool,
    leave_out: tuple[str, ...],
    python_archive: Path | None,
    everything: bool,
) -> None:
    """Write the kit, its locked packages, servers and weights as parts; there, run `python3 unpack.py FOLDER`.

    FOLDER is a new folder for the parts.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from ensemblekit.bundle.contents import LEFT_OUT, normal
    from ensemblekit.bundle.create import create_bundle

    left_out = {*map(normal, leave_out), *(() if everything else LEFT_OUT)}
    plan = replace(_plan(python, device, have, release, lab=lab, left_out=left_out), python_archive=python_archive)
    if have and python_archive:  # what that machine has is for its own Python
        raise ParameterError(
            "bring a Python to a machine that has packages",
            found="--have beside --python-archive",
            hint="leave one of them out",
        )
    console = Console(stderr=True)
    carried, present, left = (len(names) for names in (plan.choice.carried, plan.choice.present, plan.choice.left_out))
    say(console, f"{carried} packages to carry, {present} are there already, {left} left out")
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("packages")
        bundle = create_bundle(
            plan,
            folder,
            part_size,
            lambda what, done, total: bars.update(task, description=what, completed=done, total=total),
        )
    version = "3.6 or newer" if python_archive else python
    say(
        console,
        f"{bundle.size / 1e6:.0f} MB in {bundle.parts} parts after {bundle.seconds:.0f} s: {folder}",
        f"There: copy the folder, then `python3 unpack.py TARGET` with Python {version}",
    )


def _plan(
    python: str, device: str, have: Path | None, releases: tuple[str, ...], *, lab: bool, left_out: set[str]
) -> "Plan":
    """Check the options and choose the contents.

    Raises:
        ParameterError: One of them is not legal.
    """
    from ensemblekit.bundle.contents import Device, choose, layers_for, read_have, read_pins
    from ensemblekit.bundle.create import Plan
    from ensemblekit.releases import get_release, list_releases

    releases = releases or tuple(one.name for one in list_releases())
    if python not in PYTHONS or device not in get_args(Device) or (device, python) == ("cuda", "3.11"):
        raise ParameterError(
            f"make a bundle for Python {python} and device {device}",
            found="the locks are for Python 3.11 and 3.12; the GPU's for 3.12 alone",
            hint="--python 3.12 with --device cuda, cpu or quick",
        )
    for name in releases:
        get_release(name)
    chosen: Device = one_of("the device", device, get_args(Device))
    layers = layers_for(chosen, lab=lab)
    choice = choose(read_pins(layers), read_have(have) if have else {}, left_out)
    return Plan(python, chosen, layers, choice, releases, weights=chosen != "quick")
