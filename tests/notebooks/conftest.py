# SPDX-License-Identifier: Apache-2.0
"""The notebooks, found and not listed."""

from pathlib import Path

import nbformat
import pytest

from ensemblekit.paths import repo_root

LESSONS = tuple(sorted((repo_root() / "notebooks").glob("[0-9]*.ipynb")))
SOLUTIONS = tuple(sorted((repo_root() / "notebooks" / "solutions").glob("[0-9]*.ipynb")))
NOTEBOOKS = LESSONS + SOLUTIONS  # a solution has the form of a lesson


def _id(path: Path) -> str:
    return path.stem if path in LESSONS else f"solution-{path.stem}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `notebook` once for each lesson and each solution of an exercise."""
    if "notebook" in metafunc.fixturenames:
        metafunc.parametrize("notebook", NOTEBOOKS, ids=[_id(path) for path in NOTEBOOKS])


@pytest.fixture
def cells(notebook: Path) -> list[nbformat.NotebookNode]:
    """The cells of one notebook."""
    return list(nbformat.read(notebook, as_version=4).cells)
