# SPDX-License-Identifier: Apache-2.0
"""nbval runs every lesson with its defaults and compares the checked cells; and it really compares."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from ensemblekit.paths import repo_root
from tests.faults.conftest import LONG
from tests.notebooks.conftest import LESSONS

LESSON_TIMEOUT_S = 1800
# Lessons of which no checked cell needs vLLM: in the short form with the stand-in. 03 to 06 have the real one here.
WITH_EITHER = () if LONG else ("01", "02", "11", "12")
DEFAULT_ENGINE, STAND_IN = 'ENGINE: str = "auto"', 'ENGINE: str = "stand-in"'
pytestmark = [pytest.mark.notebook]


def run_nbval(notebook: Path, runs: Path) -> subprocess.CompletedProcess[str]:
    """Run nbval on one notebook in a process of its own, with its server logs under `runs`."""
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-q", "-p", "no:cacheprovider", "--no-header"]
    command += [
        "--rootdir",
        str(notebook.parent),
        "-c",
        os.devnull,
        f"--nbval-cell-timeout={LESSON_TIMEOUT_S}",
        str(notebook),
    ]
    environment = os.environ | {"ENSEMBLEKIT_RUN_DIR": str(runs), "ENSEMBLEKIT_BATCH": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=LESSON_TIMEOUT_S, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(LESSON_TIMEOUT_S)
def test_lesson_gives_its_committed_outputs(notebook: Path, tmp_path: Path) -> None:
    if notebook.stem.startswith(WITH_EITHER) and notebook in LESSONS:
        text = notebook.read_text()
        assert text.count(json.dumps(DEFAULT_ENGINE)[1:-1]) == 1
        notebook = tmp_path / notebook.name
        notebook.write_text(text.replace(json.dumps(DEFAULT_ENGINE)[1:-1], json.dumps(STAND_IN)[1:-1]))
    done = run_nbval(notebook, tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def _changed_copy(target: Path, change: str) -> Path:
    """Copy the preflight lesson with the output of its first checked cell changed."""
    notebook = nbformat.read(repo_root() / "notebooks" / "00_preflight.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if "nbval-check-output" in cell.metadata.get("tags", []))
    cell.outputs[0].text = change
    nbformat.write(notebook, target)
    return target


def test_nbval_with_a_changed_checked_output_fails(tmp_path: Path) -> None:
    done = run_nbval(_changed_copy(tmp_path / "changed-fail.ipynb", "ok: something else\n"), tmp_path)
    assert done.returncode == 1, done.stdout
    assert "something else" in done.stdout


def test_nbval_with_the_unchanged_output_passes(tmp_path: Path) -> None:
    target = tmp_path / "unchanged-pass.ipynb"
    target.write_text((repo_root() / "notebooks" / "00_preflight.ipynb").read_text())
    done = run_nbval(target, tmp_path)
    assert done.returncode == 0, done.stdout
