# SPDX-License-Identifier: Apache-2.0
"""What `ensemblekit run` does: chooses, executes, reports, and shows all that to the person who waits."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TaskID

from ensemblekit.batch.notebooks import Notebook, RunPlan, choose_notebooks, distribute, read_sets
from ensemblekit.batch.report import write_report
from ensemblekit.batch.runner import LessonResult, Run, RunListener, run_lessons
from ensemblekit.cli.options import EXIT_FAILED, EXIT_INTERRUPTED, progress_bars, say
from ensemblekit.errors import ParameterError
from ensemblekit.paths import new_run_id, temporary_dir
from ensemblekit.paths import runs_dir as default_runs_dir

__all__ = ["execute"]

STYLES = {"passed": "green", "failed": "red", "incomplete": "red", "interrupted": "yellow", "not run": "dim"}


class _Bars(RunListener):
    """Two bars on a terminal, and one line per lesson everywhere."""

    def __init__(self, console: Console, lessons: int) -> None:
        self.console = console
        self.bars = progress_bars(console)
        self.overall = self.bars.add_task("lessons", total=lessons)
        self.current: TaskID | None = None

    def lesson_begins(self, lesson: Notebook, cells: int) -> None:
        """Show that a lesson begins."""
        if not self.console.is_terminal:
            self.console.print(f"{lesson.name} begins, {cells} cells", highlight=False)
        self.current = self.bars.add_task(lesson.name, total=cells)

    def cell_begins(self, number: int) -> None:
        """Move the lesson's bar."""
        if self.current is not None:
            self.bars.update(self.current, completed=number - 1)

    def lesson_ends(self, result: LessonResult) -> None:
        """Say how a lesson ended."""
        if self.current is not None:
            self.bars.remove_task(self.current)
            self.current = None
        self.bars.advance(self.overall)
        style = STYLES[result.outcome]
        self.console.print(f"[{style}]{result.outcome:<12}[/]{result.name:<38}{result.seconds:7.1f} s", highlight=False)


def execute(
    only: Sequence[str],
    given: Mapping[str, str],
    *,
    quick: bool,
    cell_timeout_s: float,
    runs_dir: Path | None = None,
    sweep: Path | None = None,
    resume: Path | None = None,
) -> int:
    """Execute the chosen lessons, write the report and return the exit code.

    Args:
        only: Lessons by number or name; all if empty.
        given: Parameters by name, as text.
        quick: Use the Python stand-in for `llm`.
        cell_timeout_s: How long one cell may take.
        runs_dir: Where the run's folder goes.
        sweep: A file of parameter sets, each of which makes one run.
        resume: A run's name or folder, to go on with; its own choices count then.

    Raises:
        ParameterError: A lesson or parameter is not known.
        OSError: The run's folder cannot be written.
        UnsupportedMachine: There is no folder for temporary files.
    """
    runs_dir = (runs_dir or default_runs_dir()).resolve()
    if resume:
        if only or given or quick or sweep:
            raise ParameterError("go on with a run", found="other choices beside it", hint="give --resume alone")
        folder = runs_dir / resume
        plan = RunPlan.load(folder)
    else:
        plan = RunPlan(only, given, quick, cell_timeout_s, read_sets(sweep) if sweep else ())
        label = "quick" if quick else "full"
        folder = runs_dir / new_run_id("sweep" if sweep else label)
    temporary_dir()  # kernels and servers need it: said once, and before anything starts
    lessons = choose_notebooks(plan.only)
    runs = [(place, each, distribute(lessons, each, quick=plan.quick)) for place, each in plan.runs(folder)]
    if not resume:
        with _errors_that_name(folder):
            plan.save(folder)
    console = Console(stderr=True)
    if plan.quick:
        console.print("Quick mode: llm is a Python stand-in, no vLLM runs.", style="yellow")
    codes = list[int]()
    for place, each, parameters in runs:
        if plan.sets:
            say(console, f"\n{place.name} of {len(runs)}: {_words(each)}")
        _say_what_stays(console, lessons, each, parameters)
        codes.append(_execute_one(plan, lessons, parameters, place, console))
        if codes[-1] == EXIT_INTERRUPTED:
            say(console, f"To go on: --resume {folder.name}")
            break
    if plan.sets:
        console.print(f"\n{codes.count(0)} of {len(runs)} sets passed", highlight=False)
    return max(codes)


@contextmanager
def _errors_that_name(folder: Path) -> Iterator[None]:
    """Give errors of the disk a place: a full one names no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise


def _words(parameters: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items())


def _execute_one(
    plan: RunPlan,
    lessons: Sequence[Notebook],
    parameters: Mapping[str, Mapping[str, object]],
    folder: Path,
    console: Console,
) -> int:
    bars = _Bars(console, len(lessons))
    options: dict[str, Any] = {"quick": plan.quick, "cell_timeout_s": plan.cell_timeout_s, "listener": bars}
    with _errors_that_name(folder):
        with bars.bars:
            run = run_lessons(lessons, parameters, folder, **options)
        index = write_report(run)
    _conclude(console, run, index)
    if any(result.outcome == "interrupted" for result in run.results):
        return EXIT_INTERRUPTED
    return 0 if run.passed else EXIT_FAILED


def _say_what_stays(
    console: Console,
    lessons: Sequence[Notebook],
    given: Mapping[str, str],
    parameters: Mapping[str, Mapping[str, object]],
) -> None:
    """Say which lessons keep their own release although another was given."""
    for lesson in lessons:
        if "RELEASE" in given and "RELEASE" in lesson.parameters and "RELEASE" not in parameters[lesson.name]:
            own = lesson.parameters["RELEASE"]
            console.print(f"{lesson.name} keeps its release {own.default} ({own.comment})", highlight=False)


def _conclude(console: Console, run: Run, index: Path) -> None:
    for result in run.results:
        if result.message:
            say(console, "", result.message)
    passed = sum(result.outcome == "passed" for result in run.results)
    say(console, f"\n{passed} of {len(run.results)} lessons passed in {run.seconds:.0f} s", f"Report: {_shown(index)}")


def _shown(path: Path) -> str:
    """Return a path relative to the current folder if it lies in it, else whole."""
    here = Path(os.getcwd())
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
