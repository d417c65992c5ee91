# SPDX-License-Identifier: Apache-2.0
"""Run the cells of a solution in this process with other answers in them, all on one server."""

import linecache
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest

import ensemblekit
from ensemblekit.batch.exercises import MARK, solutions_dir
from ensemblekit.errors import CheckFailed
from ensemblekit.faults.log import read_log
from ensemblekit.lesson.lesson import Lesson
from ensemblekit.settings import check_settings

ANSWERS = tomllib.loads((Path(__file__).parent / "answers.toml").read_text())
BEFORE = ("lesson.stop()", "lesson.record(")  # cells that are not part of a task


class SharedLesson(Lesson):
    """A lesson whose servers are started once: the next time, the outcome or the server of before is returned."""

    def __init__(self, name: str, flavour: str) -> None:
        super().__init__(name, check_settings(RELEASE="24.08", FLAVOUR=flavour, ENGINE="stand-in"))
        self._outcomes: dict[str, Any] = {}
        self._served, self._count, self._explicit = "", 0, False

    def attempt_start(self, server: Any) -> Any:
        """Return the outcome of the first attempt."""
        key = "the broken server"
        if key not in self._outcomes:
            self._outcomes[key] = super().attempt_start(server)
        return self._outcomes[key]

    def repository(self, *given: Any, **more: Any) -> Any:
        """Return a fresh copy; a server that loads by request keeps its own, or it would load every model again."""
        if not self._explicit:
            self._staged = super().repository(*given, **more)
        return self._staged

    def server(self, repository: Any, **choice: Any) -> Any:
        """Return a server; the files of one that runs stay untouched."""
        self._count += 1
        return super().server(repository, **choice | {"name": f"{choice.get('name', 'server')}-{self._count}"})

    def start(self, server: Any = None) -> Any:
        """Return the server that runs, if it serves the same content."""
        if self._served != (content := _content(server)):
            super().start(server)
            self._served, self._explicit = content, server.options.explicit
        return self._current

    def serve(self, **_options: Any) -> Any:
        """Return the server that runs; it is never another here."""
        return self._current or self.start(self.server(self.repository()))

    def forget_crashed(self) -> bool:
        """Return whether the server has crashed; the next start is then a new one."""
        crashed = self._current is not None and "Signal (11) received" in read_log(self._current.log_path)
        if crashed:
            self.stop()
            self._served = ""
        return crashed

    def probe(self, **_choice: Any) -> str:
        """Return nothing worth waiting for: the probe has tests of its own."""
        return ""


def _content(server: Any) -> str:
    """Return what a server serves; one in explicit mode loads its ensemble on request."""
    paths = [path for name in ("*.pbtxt", "model.py") for path in sorted(Path(server.repository).rglob(name))]
    later = "ensemble" if server.options.explicit else ""
    return "\0".join(path.read_text() for path in paths if path.parent.name != later) + server.installation.release.name


@contextmanager
def shared_lesson(exercise: str, patch: pytest.MonkeyPatch) -> Iterator[SharedLesson]:
    """Open the lesson of an exercise for many runs of its cells."""
    flavour = "vllm-image" if exercise.startswith("06") else "base-plus-vllm"
    lesson = SharedLesson(exercise, flavour)
    patch.setattr(ensemblekit, "open_lesson", lambda *_args, **_more: lesson, raising=False)
    try:
        yield lesson
    finally:
        lesson.stop()


def judged(lesson: SharedLesson, exercise: str, answers: dict[str, str]) -> str:
    """Return what `run_cells` does; once more on a new server if Triton crashed meanwhile.

    Triton 24.08 does so now and then when clients leave many streams early (signal 11 in its gRPC thread).
    """
    said = run_cells(exercise, answers)
    return run_cells(exercise, answers) if lesson.forget_crashed() else said


def run_cells(exercise: str, answers: dict[str, str]) -> str:
    """Run the cells of a solution with other answers, and return the message of the check that fails, or nothing.

    Args:
        exercise: The solution's name without suffix.
        answers: Cell ids, and what stands in each below its comment.
    """
    notebook = nbformat.read(solutions_dir() / f"{exercise}.ipynb", as_version=4)
    ids = {cell.id for cell in notebook.cells}
    assert answers.keys() <= ids, answers.keys() - ids
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook.cells:
        if cell.cell_type == "code" and not cell.source.startswith(BEFORE):
            source = cell.source
            if cell.id in answers:
                source = f"{source.split(MARK)[0]}{answers[cell.id]}"
            try:
                _run(source, f"<{cell.id}>", names)
            except CheckFailed as failed:
                return str(failed)
    return ""


def _run(source: str, name: str, names: dict[str, Any]) -> None:
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for inspect.getsource
    exec(compile(source, name, "exec"), names)
