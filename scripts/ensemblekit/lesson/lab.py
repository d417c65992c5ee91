# SPDX-License-Identifier: Apache-2.0
"""JupyterLab for learners: a working copy of the lessons, a start page, and nothing else in view."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ensemblekit.batch.notebooks import Notebook, choose_notebooks
from ensemblekit.paths import repo_root

__all__ = ["START_PAGE", "lab_command", "lab_options", "make_working_copy", "reset_notebook", "work_dir"]

START_PAGE = "start.ipynb"
COPIED = (
    *("[0-9]*.ipynb", "exercises/*.ipynb", "solutions/*.ipynb", "zh/*.ipynb"),
    *("workshop/*.md", "glossary.md", "upgrading.md"),
)
WORK_VARIABLE = "ENSEMBLEKIT_WORK"  # another folder than work/ of the checkout
TIMES = repo_root() / "env" / "lab" / "times.json"  # written by tests/notebooks/record_times.py
PATHS = {"broken": ("10", "02", "03"), "understand": ("00", "01", "02", "03", "04", "05", "06")}
WORDS_A_MINUTE = 200  # of a reader who wants to understand what stands there
SOLVING = re.compile(r"\*\*Time\*\* (\d+) minutes \(\d+ \w+ to run\)")
OLD = "old"  # where a reset keeps what was there
SERVERS_CELL = "from ensemblekit import servers_panel\n\nservers_panel()"


def work_dir() -> Path:
    """Return `work/` of the checkout, which git ignores: what Lab opens, so that no tracked file changes."""
    return Path(os.environ.get(WORK_VARIABLE) or repo_root() / "work").resolve()


def make_working_copy(target: Path) -> list[Path]:
    """Copy the notebooks that are not in `target` yet, and return those; what is there stays as it is.

    Raises:
        OSError: The folder cannot be written.
    """
    source = repo_root() / "notebooks"
    new = [path.relative_to(source) for path in _notebooks(source) if not (target / path.relative_to(source)).exists()]
    for path in new:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / path, target / path)
    _write_start_page(source / "start.md", target / START_PAGE)
    return new


def _notebooks(source: Path) -> Iterator[Path]:
    for pattern in COPIED:
        yield from sorted(source.glob(pattern))


def _write_start_page(text: Path, target: Path) -> None:
    words, _, after = text.read_text().format(**_facts()).partition("<!-- running servers -->\n")
    cells = [new_markdown_cell(words), new_code_cell(SERVERS_CELL), new_markdown_cell(after)]
    for number, cell in enumerate(cells):
        cell.id = f"start-{number}"  # the same page each time, else Lab asks whether to reload it
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    page = nbformat.writes(new_notebook(cells=cells, metadata=kernel))
    if not target.exists() or target.read_text() != page:
        target.write_text(page)


def recorded_times() -> dict[str, Any]:
    """Return the last recorded run: how long each page took, in seconds, when, and on what machine."""
    recorded: dict[str, Any] = json.loads(TIMES.read_text())
    return recorded


def _facts() -> dict[str, str]:
    """Return what the start page says of the pages: how long each path takes, and a table of all of them."""
    recorded = recorded_times()
    run_s = {name.replace("solutions-", "exercises-"): seconds for name, seconds in recorded["seconds"].items()}
    pages = choose_notebooks(["", "exercises"])
    rows = [
        f"| [{page.title.rpartition(' (')[0]}]({page.path.relative_to(repo_root() / 'notebooks')}) "
        f"| {_minutes(_reading_s(page))} | {_run_time(run_s.get(page.name))} |"
        for page in pages
    ]
    paths = {
        name: _minutes(sum(_reading_s(page) + run_s.get(page.name, 0.0) for page in choose_notebooks(numbers)))
        for name, numbers in PATHS.items()
    }
    return {**paths, "pages": "\n".join(rows), "measured": str(recorded["measured"]), "speed": str(WORDS_A_MINUTE)}


def _reading_s(page: Notebook) -> float:
    """Return the seconds that a reader needs: what an exercise says itself, else by the number of words."""
    if stated := SOLVING.search(page.content.cells[2].source):
        return 60.0 * int(stated[1])
    return 60.0 * sum(len(cell.source.split()) for cell in page.content.cells) / WORDS_A_MINUTE


def _run_time(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{seconds:.0f} s"


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"


def reset_notebook(name: str, target: Path) -> tuple[Path, Path | None]:
    """Put a notebook back as it was delivered.

    Args:
        name: As for a run: `03`, `exercises/02`.
        target: The working copy.

    Returns:
        The fresh notebook, and where the old one is kept (None: there was none).

    Raises:
        ParameterError: There is no such notebook.
    """
    (notebook,) = choose_notebooks([name])
    path = notebook.path.relative_to(repo_root() / "notebooks")
    kept = None
    if (target / path).exists():
        kept = target / OLD / path.parent / f"{path.stem}-{datetime.now():%Y%m%d-%H%M%S}.ipynb"
        kept.parent.mkdir(parents=True, exist_ok=True)
        (target / path).rename(kept)
    (target / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(notebook.path, target / path)
    return target / path, kept


def lab_options(folder: Path) -> list[str]:
    """Return the options with which a Jupyter server opens a working copy on its start page, without any pop-up."""
    return [
        f"--ServerApp.root_dir={folder}",
        f"--LabApp.default_url=/lab/tree/{START_PAGE}",
        f"--LabApp.app_settings_dir={repo_root() / 'env' / 'lab'}",  # no question about news
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]


def lab_command(folder: Path, arguments: Sequence[str] = ()) -> list[str]:
    """Return the command line of JupyterLab on a working copy."""
    return [sys.executable, "-m", "jupyter", "lab", *lab_options(folder), *arguments]
