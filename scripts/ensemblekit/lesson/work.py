# SPDX-License-Identifier: Apache-2.0
"""A reader's own copy of the pages, so that the kit's stay clean, and the page on which JupyterLab opens."""

import base64
import json
import os
import re
import shutil
from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat

from ensemblekit.batch.notebooks import Notebook, choose_notebooks
from ensemblekit.faults.refusals import ENSEMBLE_REFUSED
from ensemblekit.lesson.plots import draw_pipeline
from ensemblekit.paths import repo_root

__all__ = ["START", "WORK_VARIABLE", "make_work", "recorded_times", "reset_page", "start_page"]

START = "Start.ipynb"
WORK_VARIABLE = "ENSEMBLEKIT_WORK"  # another folder than work/ of the checkout
LAB = repo_root() / "env" / "lab"
TIMES = LAB / "times.json"  # written by tests/notebooks/record_times.py
GUIDE = Path("workshop", "guide.md")
OLD = "old"
WORDS_A_MINUTE = 200  # of a reader who wants to understand what stands there
SOLVING = re.compile(r"\*\*Time\*\* (\d+) minutes \(\d+ \w+ to run\)")
RESOLUTION_DPI = 110
BROKEN, UNDERSTAND = ("10", "02", "03"), ("00", "01", "02", "03", "04", "05", "06")

PANEL = "from ensemblekit import server_panel\n\nserver_panel()"


def work_dir() -> Path:
    """Return the folder of the reader's copies, which git ignores."""
    return Path(os.environ.get(WORK_VARIABLE) or repo_root() / "work").resolve()


def make_work() -> Path:
    """Copy the pages that are not there yet, write the start page, and return their folder.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = work_dir()
    for page in _pages():
        copy = folder / _place(page)
        if not copy.exists():
            _copy(page.path, copy)
    guide = repo_root() / "notebooks" / GUIDE
    if guide.is_file():
        _copy(guide, folder / GUIDE)
    nbformat.write(start_page(), folder / START)
    return folder


def reset_page(name: str) -> str:
    """Put a page back as the kit has it, keep the reader's one under `old/`, and return a line that says so.

    Args:
        name: `03`, `exercises/01`, or a name.

    Raises:
        ParameterError: There is no such page.
        OSError: The folder cannot be written.
    """
    said = []
    for page in choose_notebooks([name]):
        copy = work_dir() / _place(page)
        kept = work_dir() / OLD / f"{page.name}-{datetime.now():%Y%m%d-%H%M%S-%f}.ipynb"
        if copy.exists():
            kept.parent.mkdir(exist_ok=True)
            copy.rename(kept)
        _copy(page.path, copy)
        said.append(f"{_place(page)} is new; yours is {OLD}/{kept.name}")
    return "\n".join(said)


def _copy(original: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(original, copy)  # without its mode: a bundle's files may be read-only


def _pages() -> list[Notebook]:
    return choose_notebooks(["", "exercises", "solutions"])


def _place(page: Notebook) -> Path:
    return page.path.relative_to(repo_root() / "notebooks")


def recorded_times() -> dict[str, Any]:
    """Return the last recorded run: how long each page took, in seconds, on what machine and when."""
    recorded: dict[str, Any] = json.loads(TIMES.read_text())
    return recorded


def start_page() -> nbformat.NotebookNode:
    """Return the start page: what an ensemble is, three paths with times, all pages, and the running servers."""
    recorded = recorded_times()
    seconds = {name.replace("solutions-", "exercises-"): each for name, each in recorded["seconds"].items()}
    by_number = {page.path.stem[:2]: page for page in choose_notebooks()}
    broken, understand = ([by_number[number] for number in path] for path in (BROKEN, UNDERSTAND))
    lessons, exercises = choose_notebooks(), choose_notebooks(["exercises"])
    guide = [f"1. [The instructor's guide]({GUIDE})"] if (repo_root() / "notebooks" / GUIDE).is_file() else []
    first, last = (
        (LAB / "start.md")
        .read_text()
        .format(
            refusal=ENSEMBLE_REFUSED,
            broken=_time(broken, seconds),
            broken_pages=_listed(broken),
            understand=_time(understand, seconds),
            understand_pages=_listed(understand),
            teach_pages="\n".join([*guide, _listed(exercises)]),
            rows="\n".join(
                f"| {_link(page)} | {_minutes(_reading_s(page))} | {_run_time(page, seconds)} |"
                for page in [*lessons, *exercises]
            ),
            speed=WORDS_A_MINUTE,
            measured=recorded["measured"],
        )
        .split("CELL")
    )
    about = nbformat.v4.new_markdown_cell(first.strip(), id="about")
    about.attachments = {"ensemble.png": {"image/png": base64.b64encode(_picture()).decode()}}
    panel = nbformat.v4.new_code_cell(PANEL, id="servers")
    pages = nbformat.v4.new_markdown_cell(last.strip(), id="pages")
    python = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return nbformat.v4.new_notebook(cells=[about, panel, pages], metadata=python)


def _listed(pages: Sequence[Notebook]) -> str:
    return "\n".join(f"1. {_link(page)}" for page in pages)


def _link(page: Notebook) -> str:
    return f"[{page.title.rpartition(' (')[0]}]({_place(page)})"


def _time(pages: Sequence[Notebook], seconds: dict[str, float]) -> str:
    return _minutes(sum(_reading_s(page) + seconds.get(page.name, 0.0) for page in pages))


def _run_time(page: Notebook, seconds: dict[str, float]) -> str:
    return f"{seconds[page.name]:.0f} s" if page.name in seconds else "not measured"


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"


def _reading_s(page: Notebook) -> float:
    """Return the seconds that a reader needs: what an exercise says itself, else by the number of words."""
    if stated := SOLVING.search(page.content.cells[2].source):
        return 60.0 * int(stated[1])
    words = sum(len(cell.source.split()) for cell in page.content.cells)
    return 60 * words / WORDS_A_MINUTE


def _picture() -> bytes:
    figure, picture = draw_pipeline(SimpleNamespace(path=repo_root() / "model_repo")), BytesIO()  # type: ignore[arg-type]
    figure.savefig(picture, format="png", dpi=RESOLUTION_DPI, facecolor="white")
    return picture.getvalue()
