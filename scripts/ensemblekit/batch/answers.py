# SPDX-License-Identifier: Apache-2.0
"""Run a participant's notebook of an exercise and say of each task whether it is solved."""

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ensemblekit.errors import ParameterError
from ensemblekit.paths import BATCH_VARIABLE

__all__ = ["TaskResult", "check_notebook"]

TASKS = "task"  # the name under which an exercise imports its checks
KERNEL_START_TIMEOUT_S = 120
MESSAGE = re.compile(r"Found: (?P<found>.*?)(?:\n(?:Log|Last \d+ log lines): .*?)?\nHint: (?P<hint>.*)", re.DOTALL)


@dataclass(frozen=True)
class TaskResult:
    """What came of one task, in one line.

    Attributes:
        number: Its place in the notebook, from 1.
        solved: Whether its check holds.
        text: What was confirmed; else what was found, and a hint.
    """

    number: int
    solved: bool
    text: str

    def __str__(self) -> str:
        return f"task {self.number}  {'solved' if self.solved else 'open  '}  {self.text}"


def check_notebook(path: Path, *, cell_timeout_s: float) -> tuple[TaskResult, ...]:
    """Run a notebook from top to bottom, the cells after an error too, and return what came of each task.

    Args:
        path: A participant's notebook; it is read, not written.
        cell_timeout_s: Seconds that one cell may take.

    Raises:
        ParameterError: The file is no notebook, or has no task.
    """
    notebook = _read(path)
    tasks = [cell for cell in notebook.cells if _task_of(cell)]
    if not tasks:
        raise ParameterError(
            f"check {path.name}",
            found="no cell with a task in it",
            hint="give a notebook of notebooks/exercises, with its cells that begin with `task.`",
        )
    _run(notebook, path.parent, cell_timeout_s)
    return tuple(_results(notebook))


def _read(path: Path) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError, KeyError, nbformat.ValidationError) as error:
        raise ParameterError(
            f"check {path}",
            found=error.strerror if isinstance(error, OSError) and error.strerror else "no notebook",
            hint="give the path of an exercise's .ipynb, for example notebooks/exercises/03_add_a_step.ipynb",
        ) from None


def _task_of(cell: NotebookNode) -> str:
    """Return the name of the check that a cell calls, empty for any other cell."""
    if cell.cell_type != "code" or f"{TASKS}." not in cell.source:
        return ""
    try:
        tree = ast.parse(cell.source)
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == TASKS:
            return node.attr
    return ""


def _run(notebook: NotebookNode, folder: Path, cell_timeout_s: float) -> None:
    from nbclient import NotebookClient

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        timeout=int(cell_timeout_s),
        startup_timeout=KERNEL_START_TIMEOUT_S,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=os.environ | {BATCH_VARIABLE: "1"})


def _results(notebook: NotebookNode) -> Iterator[TaskResult]:
    """Yield a result for each task; what an error before it broke is not held against it."""
    number, broken = 0, ""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        error = next((output for output in cell.outputs if output.output_type == "error"), None)
        if name := _task_of(cell):
            number += 1
            if error is None:
                yield TaskResult(number, True, _confirmed(cell) or name)
            elif error.ename == "CheckFailed" or not broken:
                yield TaskResult(number, False, _reason(error))
            else:
                yield TaskResult(number, False, f"not reached: {broken}")
        if error is not None and not broken:
            broken = f"before it, a cell ended with {error.ename}"


def _confirmed(cell: NotebookNode) -> str:
    text = "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")
    return "; ".join(re.findall(r"^ok: (.*)$", text, re.MULTILINE))


def _reason(error: Any) -> str:
    """Return an error in one line."""
    found = MESSAGE.search(error.evalue)
    text = f"{found['found']}. Hint: {found['hint']}" if found else f"{error.ename}: {error.evalue}"
    return " ".join(text.split())
