# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit build-plan`: print the plan, check the machine, run the build."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemblekit.cli.options import EXIT_INTERRUPTED, PATH, WORD, as_json, release, rows_table
from ensemblekit.errors import BuildError, ParameterError

if TYPE_CHECKING:
    from rich.console import Console

    from ensemblekit.diagnose.preflight import Row
    from ensemblekit.workarounds.build_plan import BuildPlan

__all__ = ["command"]

NEEDED_FOR_DRYRUN = ("git", "source", "Python packages")
COUNT = click.IntRange(1)

variant = click.option(
    "--variant", type=WORD, default="minimal", help="minimal, or full: NVIDIA's own list of features."
)
source = click.option("--source", type=PATH, help="A checkout of upstream's server repository, instead of cloning it.")
jobs = click.option("--jobs", type=COUNT, help="Compile jobs at once; default: two a core.")


@click.group(invoke_without_command=True)
@release
@variant
@source
@jobs
@as_json
@click.option("--shell", is_flag=True, help="A script that can be run as it is.")
@click.pass_context
def command(
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
    console.print("This machine")
    console.print(rows_table(rows))
    lacking = f"{len(unmet(rows))} of them still to fix, then: " if unmet(rows) else "Next: "
    _say(console, f"{lacking}{_run_command(plan)}")


def _say(console: "Console", text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


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
    _say(console, f"{title} {plan.branch}\n\n1. {source}\ncd {shlex.quote(plan.folder)}")
    _say(console, "\n2. The options of build.py: one of them matters\n")
    console.print(table)
    _say(console, f"The same through the core's own switch: {CORE_SWITCH} instead of {FLAG}.")
    _say(console, f"\n3. The dry run writes the scripts to build/ and stops\n\n{joined(plan.command(dryrun=True))}")
    _say(console, f"\n4. The build\n\n{joined(plan.command())}")
    name = "The name by which FLAVOUR custom-build with PROVIDER container finds it"
    _say(console, f"\n5. {name}\n\n{shlex.join(plan.tag)}\n")


def _run_command(plan: "BuildPlan") -> str:
    words = ["ensemblekit", "build-plan", "run", "--release", plan.release.name, "--variant", plan.variant]
    words += ["--source", str(plan.source)] if plan.source else []
    words += ["--jobs", str(plan.jobs)] if plan.jobs else []
    return shlex.join(words)


@command.command()
@release
@variant
@source
@jobs
@click.option("--dryrun", is_flag=True, help="Let build.py write its scripts, and stop.")
@click.option("--from", "start", type=COUNT, metavar="LINE", help="Repeat from this line of upstream's script on.")
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
    start: int | None,
    fresh: bool,
    anyway: bool,
    work: Path | None,
) -> None:
    """Build line by line with a log and the seconds of each; after a failure, go on where it stopped."""
    from rich.console import Console
    from rich.text import Text

    from ensemblekit.workarounds.build_plan import check_prerequisites, make_plan
    from ensemblekit.workarounds.source_build import Build, read_record

    plan = make_plan(release, variant, source=source, jobs=jobs)
    console = Console()
    say = partial(_say, console)
    status = console.status("")

    def live(text: str) -> None:
        status.update(Text(text, no_wrap=True, overflow="ellipsis"))

    build = Build(plan, work.resolve() if work else None, say, live)
    if not anyway:
        record = None if fresh else read_record(build.record_path)
        begun = record is not None and any(line.attempts for line in record.lines)
        built = ("free disk",) if begun else ()
        _require(console, check_prerequisites(plan, build.folder), NEEDED_FOR_DRYRUN if dryrun else (), but=built)
    try:
        with status:
            probe = build.run(dryrun=dryrun, fresh=fresh, start=start)
    except KeyboardInterrupt:
        click.echo("Stopped. The same command goes on with the line that was interrupted.", err=True)
        context.exit(EXIT_INTERRUPTED)
    if probe:
        minutes = sum(line.seconds for line in build.record.lines) / 60
        say(f"{plan.image} knows ensembles, after {minutes:.1f} minutes of building")
    for row in (f"log    {build.log}", f"lines  {build.record_path}", f"build  {build.build}"):
        say(row)
    if probe:
        say("use it: PROVIDER 'container' with FLAVOUR 'custom-build', for example in lesson 04")


def _require(console: "Console", rows: tuple["Row", ...], only: tuple[str, ...], *, but: tuple[str, ...]) -> None:
    """Refuse to begin what cannot end well.

    Args:
        console: For the table.
        rows: What was found.
        only: The rows that count; all if empty.
        but: The rows that do not: a build that goes on has taken some of the disk already.

    Raises:
        BuildError: A required thing is missing.
    """
    from ensemblekit.workarounds.build_plan import unmet

    missing = [row for row in unmet(rows) if (not only or row.name in only) and row.name not in but]
    if not missing:
        return
    console.print(rows_table(rows))
    found = "; ".join(f"{row.name}: {row.found}" for row in missing)
    hint = f"{missing[0].without} (the table above has every fix; --anyway builds all the same)"
    raise BuildError("begin the build", found=found, hint=hint)
