# SPDX-License-Identifier: Apache-2.0
"""The notebooks, found and not listed."""

from pathlib import Path

import nbformat
import pytest

from ensemblekit.paths import repo_root

NOTEBOOKS = tuple(sorted((repo_root() / "notebooks").glob("[0-9]*.ipynb")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `notebook` once for each lesson."""
    if "notebook" in metafunc.fixturenames:
        metafunc.parametrize("notebook", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


@pytest.fixture
def cells(notebook: Path) -> list[nbformat.NotebookNode]:
    """The cells of one lesson."""
    return list(nbformat.read(notebook, as_version=4).cells)
