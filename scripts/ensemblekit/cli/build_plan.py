# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit build-plan`: print the plan, check the machine, run the build."""

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemblekit.cli.options import COUNT, EXIT_INTERRUPTED, PATH, WORD, as_json, release, say
from ensemblekit.errors import BuildError, ParameterError

if TYPE_CHECKING:
    from rich.console import Console

    from ensemblekit.diagnose.preflight import Row
    from ensemblekit.workarounds.build_plan import BuildPlan

__all__ = ["command"]

NEEDED_FOR_DRYRUN = ("git", "source", "Python packages")

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

    from ensemblekit.workarounds.build_plan import make_plan, plan_json, print_plan, shell_script
    from ensemblekit.workarounds.prerequisites import check_prerequisites, rows_table, unmet

    if as_json and shell:
        raise ParameterError("print the plan", found="--json and --shell together", hint="choose one of them")
    plan = make_plan(release, variant, source=source, jobs=jobs)
    if as_json or shell:
        click.echo(plan_json(plan) if as_json else shell_script(plan), nl=as_json)
        return
    console = Console()
    print_plan(console, plan)
    rows = check_prerequisites(plan)
    console.print("This machine")
    console.print(rows_table(rows))
    lacking = f"{len(unmet(rows))} of them still to fix, then: " if unmet(rows) else "Next: "
    say(console, f"{lacking}{_run_command(plan)}")


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

    from ensemblekit.workarounds.build_plan import make_plan
    from ensemblekit.workarounds.prerequisites import check_prerequisites
    from ensemblekit.workarounds.source_build import Build, read_record, work_folder

    plan = make_plan(release, variant, source=source, jobs=jobs)
    folder = work.resolve() if work else work_folder(plan)
    console = Console()

    status = console.status("")
    build = Build(
        plan, folder, partial(say, console), lambda text: status.update(Text(text, no_wrap=True, overflow="ellipsis"))
    )
    if not anyway:
        record = None if fresh else read_record(build.record_path)
        begun = record is not None and any(line.attempts for line in record.lines)
        built = ("free disk",) if begun else ()
        _require(console, check_prerequisites(plan, folder), NEEDED_FOR_DRYRUN if dryrun else (), but=built)
    try:
        with status:
            result = build.run(dryrun=dryrun, fresh=fresh, start=start)
    except KeyboardInterrupt:
        click.echo("Stopped. The same command goes on with the line that was interrupted.", err=True)
        context.exit(EXIT_INTERRUPTED)
    if result.probe is not None:
        say(console, f"{result.image} knows ensembles, after {result.seconds / 60:.1f} minutes of building")
    say(console, f"log    {build.log}", f"lines  {build.record_path}", f"build  {build.build}")
    if result.probe is not None:
        say(console, "use it: PROVIDER 'container' with FLAVOUR 'custom-build', for example in lesson 04")


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
    from ensemblekit.workarounds.prerequisites import rows_table, unmet

    missing = [row for row in unmet(rows) if (not only or row.name in only) and row.name not in but]
    if not missing:
        return
    console.print(rows_table(rows))
    found = "; ".join(f"{row.name}: {row.found}" for row in missing)
    hint = f"{missing[0].without} (the table above has every fix; --anyway builds all the same)"
    raise BuildError("begin the build", found=found, hint=hint)
