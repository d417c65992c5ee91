# SPDX-License-Identifier: Apache-2.0
"""A participant's way: JupyterLab opens a lesson, runs all its cells, and the panel starts a server."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Browser, Page, expect

from ensemblekit.batch.notebooks import choose_notebooks
from ensemblekit.clients.grpc import REQUEST_TIMEOUT_S
from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from ensemblekit.paths import RUN_DIR_VARIABLE
from ensemblekit.servers.ports import free_ports

LESSON = "01_reproduce_the_failure"
TOKEN = "for-this-test-only"
PATIENCE_MS = 1000 * REQUEST_TIMEOUT_S  # two busy cores, a kernel and a server
CELLS = ".jp-Notebook .jp-CodeCell"

pytestmark = [
    pytest.mark.server,
    pytest.mark.notebook,
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("jupyterlab"), reason="JupyterLab is not installed (--lab)"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one lesson, as a participant without vLLM sets it: JupyterLab saves what it opens."""
    (lesson,) = choose_notebooks([LESSON])
    notebook = nbformat.read(lesson.path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source = cell.source.replace('ENGINE: str = "auto"', 'ENGINE: str = "stand-in"')
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type != "code" else cell.update(outputs=[], execution_count=None)
    made = tmp_path / "notebooks"
    made.mkdir()
    nbformat.write(notebook, made / lesson.path.name)
    return made


@pytest.fixture
def lab(folder: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab on that folder, with settings of its own."""
    (port,) = free_ports(1)
    own = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTERLAB_SETTINGS_DIR")}
    environment = os.environ | own | {RUN_DIR_VARIABLE: str(tmp_path / "run"), "IPYTHONDIR": str(tmp_path / "ipython")}
    environment.pop("ENSEMBLEKIT_BATCH", None)
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.port_retries=0", f"--notebook-dir={folder}"]
    with (tmp_path / "lab.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        _wait_for(process, tmp_path / "lab.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: "subprocess.Popen[bytes]", log: Path) -> None:
    import time

    while "is running at" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)


def test_lab_runs_a_lesson_and_its_panel_starts_the_failing_server(
    browser: Browser, lab: str, screenshots: Path
) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{lab}/lab/tree/{LESSON}.ipynb?token={TOKEN}")
    page.locator(CELLS).first.wait_for()
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()  # else JupyterLab asks which kernel to take
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-item", has_text=re.compile(r"^Run All Cells")).first.click()
    start = page.locator(".jupyter-button", has_text="Start")
    start.click()

    panel = page.locator(".jupyter-widgets", has_text="ensemble: refused").first
    expect(panel).to_contain_text("exited with code 1", timeout=PATIENCE_MS)
    expect(panel).to_contain_text(ENSEMBLE_REFUSED)
    _has_run_without_errors(page)
    start.scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "lab-01-panel.png")
    page.close()


def _has_run_without_errors(page: Page) -> None:
    last = page.locator(CELLS).last.locator(".jp-InputPrompt")
    expect(last).to_have_text(re.compile(r"\[\d+\]:"), timeout=PATIENCE_MS)
    wrong = page.locator("[data-mime-type='application/vnd.jupyter.error'], [data-mime-type$='.stderr']")
    assert wrong.all_inner_texts() == []
