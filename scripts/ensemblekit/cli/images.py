# SPDX-License-Identifier: Apache-2.0
"""What makes an image with ensembles: `ensemblekit workaround` from NVIDIA's base, `build-plan` from the source."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ensemblekit.cli.options import (
    COUNT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    PATH,
    WORD,
    as_json,
    container_engine,
    release,
    rows_table,
    say,
)
from ensemblekit.errors import BuildError, ParameterError
from ensemblekit.paths import RUN_DIR_VARIABLE, current_run_dir, new_run_id, runs_dir

if TYPE_CHECKING:
    from rich.console import Console

    from ensemblekit.workarounds.build_plan import BuildPlan

__all__ = ["build_plan", "workaround"]

NEEDED_FOR_DRYRUN = ("git", "source", "Python packages")

variant = click.option(
    "--variant", type=WORD, default="minimal", help="minimal, or full: NVIDIA's own list of features."
)
source = click.option("--source", type=PATH, help="A checkout of upstream's server repository, instead of cloning it.")
jobs = click.option("--jobs", type=COUNT, help="Compile jobs at once; default: two a core.")


@click.group()
def workaround() -> None:
    """Workaround 1 as an image: base plus vLLM backend."""


def _begin(container_engine: str | None) -> "Console":
    from rich.console import Console

    from ensemblekit.servers.container_engine import choose_engine

    choose_engine(container_engine)
    os.environ.setdefault(RUN_DIR_VARIABLE, str(runs_dir() / new_run_id("workaround")))
    return Console(stderr=True)


@workaround.command()
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
    say(console, *(f"  {name:<9} {value}" for name, value in rows.items()))


@workaround.command()
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
    say(console, str(found), f"{found.elapsed_s:.1f} s, {installation.image}")
    context.exit(0 if found.ensembles else EXIT_FAILED)


@workaround.command()
@release
@container_engine
def remove(release: str, container_engine: str | None) -> None:
    """Remove the image, its containers and volumes; the base image too, if the build pulled it."""
    from ensemblekit.releases import get_release
    from ensemblekit.workarounds.base_image import remove_image

    console = _begin(container_engine)
    say(console, f"removed: {remove_image(get_release(release))}")


@click.group(invoke_without_command=True)
@release
@variant
@source
@jobs
@as_json
@click.option("--shell", is_flag=True, help="A script that can be run as it is.")
@click.pass_context
def build_plan(
    context: click.Context,
    release: str,
    variant: str,
    source: Path | None,
    jobs: int | None,
    as_json: bool,
    shell: bool,
) -> None:
    """Print the pinned command lines of upstream's build.py with and without ensembles, and what this machine lacks.

    `run` does the build, line by line.
    """
    if context.invoked_subcommand:
        return
    from rich.console import Console

    from ensemblekit.workarounds.build_plan import check_prerequisites, make_plan, plan_json, shell_script, unmet

    if as_json and shell:
        raise ParameterError("print the plan", found="--json and --shell together", hint="choose one of them")
    plan = make_plan(release, variant, source=source, jobs=jobs)
    if as_json or shell:
        click.echo(plan_json(plan) if as_json else shell_script(plan), nl=as_json)
        return
    console = Console()
    _print_plan(console, plan)
    rows = check_prerequisites(plan)
    console.print("This machine", rows_table(rows), sep="\n")
    words = ["ensemblekit", "build-plan", "run", "--release", plan.release.name, "--variant", plan.variant]
    words += ["--source", str(plan.source)] if plan.source else []
    words += ["--jobs", str(plan.jobs)] if plan.jobs else []
    lacking = f"{len(unmet(rows))} of them still to fix, then: " if unmet(rows) else "Next: "
    say(console, f"{lacking}{shlex.join(words)}")


def _print_plan(console: "Console", plan: "BuildPlan") -> None:
    """Print the plan for a reader: what to type, and the one option that matters."""
    from rich.box import SIMPLE
    from rich.table import Table

    from ensemblekit.workarounds.build_plan import CORE_SWITCH, FLAG, compared, joined

    table = Table("without ensembles", "with ensembles", box=SIMPLE, padding=(0, 1, 0, 0))
    for without, with_flag in compared(plan):
        table.add_row(without, with_flag, style="" if without == with_flag else "bold green")
    source = f"The source\n\n{shlex.join(plan.clone)}" if plan.clone else "The source is here\n"
    title = f"Triton {plan.release.name} with vLLM and ensembles, {plan.variant} build, upstream's branch"
    say(console, f"{title} {plan.branch}\n\n1. {source}\ncd {shlex.quote(plan.folder)}")
    say(console, "\n2. The options of build.py: one of them matters\n")
    console.print(table)
    say(console, f"The same through the core's own switch: {CORE_SWITCH} instead of {FLAG}.")
    say(console, f"\n3. The dry run writes the scripts to build/ and stops\n\n{joined(plan.command(dryrun=True))}")
    say(console, f"\n4. The build\n\n{joined(plan.command())}")
    name = "The name by which FLAVOUR custom-build with PROVIDER container finds it"
    say(console, f"\n5. {name}\n\n{shlex.join(plan.tag)}\n")


@build_plan.command()
@release
@variant
@source
@jobs
@click.option("--dryrun", is_flag=True, help="Let build.py write its scripts, and stop.")
@click.option("--fresh", is_flag=True, help="Forget earlier runs and begin anew.")
@click.option("--anyway", is_flag=True, help="Build although a prerequisite is missing.")
@click.option("--work", type=PATH, help="Where source, log and seconds go (default: the cache).")
@click.pass_context
def run(
    context: click.Context,
    release: str,
    variant: str,
    source: Path | None,
    jobs: int | None,
    dryrun: bool,
    fresh: bool,
    anyway: bool,
    work: Path | None,
) -> None:
    """Build line by line with a log and the seconds of each; after a failure, go on where it stopped."""
    from rich.console import Console

    from ensemblekit.workarounds.build_plan import check_prerequisites, make_plan, unmet
    from ensemblekit.workarounds.source_build import Build

    console = Console()
    build = Build(make_plan(release, variant, source=source, jobs=jobs), console, work.resolve() if work else None)
    if not anyway and (fresh or not build.begun):  # a build that goes on has taken some of the disk already
        rows = check_prerequisites(build.plan, build.folder)
        missing = [row for row in unmet(rows) if not dryrun or row.name in NEEDED_FOR_DRYRUN]
        if missing:
            console.print(rows_table(rows))
            found = "; ".join(f"{row.name}: {row.found}" for row in missing)
            hint = f"{missing[0].without} (the table above has every fix; --anyway builds all the same)"
            raise BuildError("begin the build", found=found, hint=hint)
    try:
        probe = build.run(dryrun=dryrun, fresh=fresh)
    except KeyboardInterrupt:
        click.echo("Stopped. The same command goes on with the line that was interrupted.", err=True)
        context.exit(EXIT_INTERRUPTED)
    if probe:
        minutes = sum(line.seconds for line in build.record.lines) / 60
        say(console, f"{build.plan.image} knows ensembles, after {minutes:.1f} minutes of building")
    say(console, f"log    {build.log}", f"lines  {build.record_path}", f"build  {build.build}")
    if probe:
        say(console, "use it: PROVIDER 'container' with FLAVOUR 'custom-build', for example in lesson 04")
