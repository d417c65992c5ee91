# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit build-plan`: print the plan, check the machine, run the build."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ensemblekit.diagnose.preflight import Row
from ensemblekit.errors import BuildError, ParameterError
from ensemblekit.workarounds.build_plan import BuildPlan, make_plan, plan_json, print_plan, shell_script
from ensemblekit.workarounds.prerequisites import check_prerequisites, rows_table, unmet
from ensemblekit.workarounds.source_build import Build, read_record, work_folder

__all__ = ["app"]

EXIT_INTERRUPTED = 130
NEEDED_FOR_DRYRUN = ("git", "source", "Python packages")
app = typer.Typer(rich_markup_mode=None, help="Workaround 2: build the vLLM image again, with ensembles.")

ReleaseOption = Annotated[str, typer.Option(help="24.07 to 24.10.")]
VariantOption = Annotated[str, typer.Option(help="minimal, or full: NVIDIA's own list of features.")]
SourceOption = Annotated[
    Path | None, typer.Option(help="A checkout of upstream's server repository, instead of cloning it.")
]
JobsOption = Annotated[int | None, typer.Option(help="Compile jobs at once; default: two a core.", min=1)]
StartOption = Annotated[
    int | None, typer.Option("--from", help="Repeat from this line of upstream's script on.", metavar="LINE", min=1)
]


@app.callback(invoke_without_command=True)
def plan_command(
    context: typer.Context,
    release: ReleaseOption = "24.08",
    variant: VariantOption = "minimal",
    source: SourceOption = None,
    jobs: JobsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    shell: Annotated[bool, typer.Option("--shell", help="A script that can be run as it is.")] = False,
) -> None:
    """Print the pinned command lines of upstream's build.py with and without ensembles, and what this machine lacks.

    `run` does the build, line by line.
    """
    if context.invoked_subcommand:
        return
    if as_json and shell:
        raise ParameterError("print the plan", found="--json and --shell together", hint="choose one of them")
    plan = make_plan(release, variant, source=source, jobs=jobs)
    if as_json or shell:
        typer.echo(plan_json(plan) if as_json else shell_script(plan), nl=as_json)
        return
    console = Console()
    print_plan(console, plan)
    rows = check_prerequisites(plan)
    console.print("This machine")
    console.print(rows_table(rows))
    lacking = f"{len(unmet(rows))} of them still to fix, then: " if unmet(rows) else "Next: "
    console.print(f"{lacking}{_run_command(plan)}", markup=False, highlight=False, soft_wrap=True)


def _run_command(plan: BuildPlan) -> str:
    words = ["ensemblekit", "build-plan", "run", "--release", plan.release.name, "--variant", plan.variant]
    words += ["--source", str(plan.source)] if plan.source else []
    words += ["--jobs", str(plan.jobs)] if plan.jobs else []
    return shlex.join(words)


@app.command()
def run(
    release: ReleaseOption = "24.08",
    variant: VariantOption = "minimal",
    source: SourceOption = None,
    jobs: JobsOption = None,
    dryrun: Annotated[bool, typer.Option("--dryrun", help="Let build.py write its scripts, and stop.")] = False,
    start: StartOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs and begin anew.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Build although a prerequisite is missing.")] = False,
    work: Annotated[Path | None, typer.Option(help="Where source, log and seconds go (default: the cache).")] = None,
) -> None:
    """Build line by line with a log and the seconds of each; after a failure, go on where it stopped."""
    plan = make_plan(release, variant, source=source, jobs=jobs)
    folder = work.resolve() if work else work_folder(plan)
    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    status = console.status("")
    build = Build(plan, folder, say, lambda text: status.update(Text(text, no_wrap=True, overflow="ellipsis")))
    if not anyway:
        record = None if fresh else read_record(build.record_path)
        begun = record is not None and any(line.attempts for line in record.lines)
        built = ("free disk",) if begun else ()
        _require(console, check_prerequisites(plan, folder), NEEDED_FOR_DRYRUN if dryrun else (), but=built)
    try:
        with status:
            result = build.run(dryrun=dryrun, fresh=fresh, start=start)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped. The same command goes on with the line that was interrupted.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if result.probe is not None:
        say(f"{result.image} knows ensembles, after {result.seconds / 60:.1f} minutes of building")
    for row in (f"log    {build.log}", f"lines  {build.record_path}", f"build  {build.build}"):
        say(row)
    if result.probe is not None:
        say("use it: PROVIDER 'container' with FLAVOUR 'custom-build', for example in lesson 04")


def _require(console: Console, rows: tuple[Row, ...], only: tuple[str, ...], *, but: tuple[str, ...]) -> None:
    """Refuse to begin what cannot end well.

    Args:
        console: For the table.
        rows: What was found.
        only: The rows that count; all if empty.
        but: The rows that do not: a build that goes on has taken some of the disk already.

    Raises:
        BuildError: A required thing is missing.
    """
    missing = [row for row in unmet(rows) if (not only or row.name in only) and row.name not in but]
    if not missing:
        return
    console.print(rows_table(rows))
    raise BuildError(
        "begin the build", found="; ".join(f"{row.name}: {row.found}" for row in missing),
        hint=f"{missing[0].without} (the table above has every fix; --anyway builds all the same)",
    )  # fmt: skip
