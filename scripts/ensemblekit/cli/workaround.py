# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit workaround build|probe|remove`: workaround 1 with containers, on the command line."""

import os
from typing import TYPE_CHECKING, cast

import click

from ensemblekit.cli.options import EXIT_FAILED, container_engine, release
from ensemblekit.paths import RUN_DIR_VARIABLE, current_run_dir, new_run_id, runs_dir

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["command"]


@click.group()
def command() -> None:
    """Workaround 1 as an image: base plus vLLM backend."""


def _begin(container_engine: str | None) -> "Console":
    from rich.console import Console

    from ensemblekit.servers.container_engine import choose_engine

    choose_engine(container_engine)
    os.environ.setdefault(RUN_DIR_VARIABLE, str(runs_dir() / new_run_id("workaround")))
    return Console(stderr=True)


@command.command()
@release
@click.option("--base", help="Another base image than NVIDIA's <release>-py3.")
@click.option("--backend", default="upstream", help="upstream, at the release's branch; or kit.")
@click.option("--vllm", help="What pip installs; none leaves the engine out.")
@container_engine
def build(release: str, base: str | None, backend: str, vllm: str | None, container_engine: str | None) -> None:
    """Build the image; FLAVOUR base-plus-vllm with PROVIDER container then uses it."""
    from ensemblekit.releases import get_release
    from ensemblekit.workarounds.base_image import Backend, build_image

    console = _begin(container_engine)
    with console.status("asking the engine") as line:
        built = build_image(
            get_release(release), base=base, backend=cast(Backend, backend), vllm=vllm, progress=line.update
        )
    rows = {name: getattr(built, name) for name in ("image", "digest", "base", "backend", "vllm")}
    rows |= {"size": f"{built.gb:.2f} GB", "built in": f"{built.seconds:.0f} s", "log": str(built.log_path)}
    for name, value in rows.items():
        console.print(f"  {name:<9} {value}", markup=False, highlight=False, soft_wrap=True)


@command.command()
@release
@container_engine
@click.pass_context
def probe(context: click.Context, release: str, container_engine: str | None) -> None:
    """Ask the built image whether it knows ensembles; exit code 1 if not."""
    from ensemblekit.diagnose.probe.target import probe_installation
    from ensemblekit.releases import get_release
    from ensemblekit.servers.container import install_container

    console = _begin(container_engine)
    folder = current_run_dir()
    installation = install_container(get_release(release), "base-plus-vllm", folder.name)
    found = probe_installation(installation, folder / "probe")
    console.print(f"{found}\n{found.elapsed_s:.1f} s, {installation.image}", markup=False, highlight=False)
    context.exit(0 if found.ensembles else EXIT_FAILED)


@command.command()
@release
@container_engine
def remove(release: str, container_engine: str | None) -> None:
    """Remove the image, its containers and volumes; the base image too, if the build pulled it."""
    from ensemblekit.releases import get_release
    from ensemblekit.workarounds.base_image import remove_image

    console = _begin(container_engine)
    console.print(f"removed: {remove_image(get_release(release))}", highlight=False)
