# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit bundle create`: from the command line to the plan, with progress."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console

from ensemblekit.errors import ParameterError

if TYPE_CHECKING:
    from ensemblekit.bundle.create import Plan

__all__ = ["app"]

PYTHONS = ("3.11", "3.12")
app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The kit for a host without a network.")


@app.callback()
def _group() -> None:
    """Keep `create` a command of its own."""


@app.command()
def create(
    folder: Annotated[Path, typer.Argument(help="A new folder for the parts.")],
    python: Annotated[str, typer.Option(help="The other machine's Python.")] = "3.12",
    device: Annotated[str, typer.Option(help="cuda, cpu, or quick (no vLLM).")] = "cuda",
    have: Annotated[
        Path | None, typer.Option(help="What `pip list --format=json` prints there; that much is not carried.")
    ] = None,
    release: Annotated[list[str] | None, typer.Option(help="Triton releases to bring.")] = None,
    part_size: Annotated[str, typer.Option(help="Largest file, for example 62MB or 4GiB.")] = "1GB",
    lab: Annotated[bool, typer.Option(help="Bring JupyterLab; only with --device quick can it be left out.")] = True,
    leave_out: Annotated[list[str] | None, typer.Option(help="Another package not to carry.")] = None,
    everything: Annotated[bool, typer.Option(help="Carry also what text generation never imports.")] = False,
) -> None:
    """Write the kit, its locked packages, servers and weights as parts; there, run `python3 unpack.py FOLDER`."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from ensemblekit.bundle.contents import LEFT_OUT, normal
    from ensemblekit.bundle.create import create_bundle
    from ensemblekit.bundle.parts import parse_size

    plan = _plan(python, device, have, tuple(release or ("24.08", "24.10")), lab=lab,
                 left_out={*map(normal, leave_out or ()), *(() if everything else LEFT_OUT)})  # fmt: skip
    size = parse_size(part_size)
    console = Console(stderr=True)
    console.print(
        f"{len(plan.choice.carried)} packages to carry, {len(plan.choice.present)} are there already, "
        f"{len(plan.choice.left_out)} left out",
        highlight=False,
    )
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("packages")
        bundle = create_bundle(
            plan,
            folder,
            size,
            lambda what, done, total: bars.update(task, description=what, completed=done, total=total),
        )
    console.print(
        f"{bundle.size / 1e6:.0f} MB in {bundle.parts} parts after {bundle.seconds:.0f} s: {folder}\n"
        f"There: copy the folder, then `python3 unpack.py TARGET` with Python {python}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _plan(
    python: str, device: str, have: Path | None, releases: tuple[str, ...], *, lab: bool, left_out: set[str]
) -> "Plan":
    """Check the options and choose the contents.

    Raises:
        ParameterError: One of them is not legal.
    """
    from ensemblekit.bundle.contents import Device, choose, layers_for, read_have, read_pins
    from ensemblekit.bundle.create import Plan
    from ensemblekit.releases import get_release

    if python not in PYTHONS or device not in get_args(Device) or (device, python) == ("cuda", "3.11"):
        raise ParameterError(
            f"make a bundle for Python {python} and device {device}",
            found="the locks are for Python 3.11 and 3.12; the GPU's for 3.12 alone",
            hint="--python 3.12 with --device cuda, cpu or quick",
        )
    for name in releases:
        get_release(name)
    chosen: Device = "cuda" if device == "cuda" else "cpu" if device == "cpu" else "quick"
    layers = layers_for(chosen, lab=lab)
    choice = choose(read_pins(layers), read_have(have) if have else {}, left_out)
    return Plan(python, chosen, layers, choice, releases, weights=chosen != "quick")
