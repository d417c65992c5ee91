# SPDX-License-Identifier: Apache-2.0
"""A participant's way: JupyterLab opens on the start page, lessons run from the menu, their servers can be asked."""

import contextlib
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from playwright.sync_api import TimeoutError as PageTimeout

from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from ensemblekit.lesson.lab import START_PAGE, WORK_VARIABLE, make_working_copy
from ensemblekit.paths import BATCH_VARIABLE, RUN_DIR_VARIABLE, repo_root
from ensemblekit.servers.ports import free_ports
from ensemblekit.servers.running import RunningServer, running_servers
from ensemblekit.servers.supervised import wait_until

FAILURE, INFERENCE = "01_reproduce_the_failure", "06_inference_through_the_ensemble"
TOKEN = "for-this-test-only"
PATIENCE_MS = 300_000  # two busy cores, a kernel and a server
MENU_MS = 60_000
CELLS = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-CodeCell"
START_S = 120.0  # on a machine with other work
BUTTON = ".jupyter-button"
STOP_WITHIN_S = 20.0

pytestmark = [
    pytest.mark.server,
    pytest.mark.notebook,
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("jupyterlab"), reason="JupyterLab is not installed (--lab)"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a participant without vLLM: working copies, and runs."""
    folder = tmp_path_factory.mktemp("home")
    work = folder / "work"
    make_working_copy(work)
    for name in (FAILURE, INFERENCE):
        page = work / f"{name}.ipynb"
        page.write_text(page.read_text().replace('ENGINE: str = \\"auto\\"', 'ENGINE: str = \\"stand-in\\"'))
    return folder


@pytest.fixture(scope="module")
def lab(home: Path) -> Iterator[str]:
    """The address of a JupyterLab as `scripts/lab` opens it, with settings of its own; the kit's files stay clean."""
    (port,) = free_ports(1)
    own = {name: str(home / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTERLAB_SETTINGS_DIR")}
    own |= {"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "IPYTHONDIR": str(home / "ipython")}
    own |= {WORK_VARIABLE: str(home / "work"), RUN_DIR_VARIABLE: str(home / "run")}
    environment = {name: value for name, value in (os.environ | own).items() if name != BATCH_VARIABLE}
    command = [sys.executable, "-m", "ensemblekit.cli.main", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.port_retries=0"]
    before, log_path = _tracked(), home / "lab.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        ready = wait_until(
            lambda: "is running at" in log_path.read_text() or process.poll() is not None or None, START_S
        )
        assert ready, log_path.read_text()
        assert process.poll() is None, log_path.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
    assert _tracked() == before


def _tracked() -> str:
    status = ["git", "-C", str(repo_root()), "status", "--porcelain", "notebooks"]
    return subprocess.run(status, capture_output=True, text=True, check=True).stdout


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    """What the reader's system prefers."""
    return str(request.param)


def _open(browser: Browser, address: str, scheme: str = "light") -> Page:
    page = browser.new_page(viewport={"width": 1300, "height": 1000}, color_scheme=scheme)  # type: ignore[arg-type]
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{address}token={TOKEN}")
    is_ready(page, address.rpartition("/")[2].rstrip("?") or START_PAGE)
    return page


def test_lab_opens_on_the_start_page(browser: Browser, lab: str, scheme: str, screenshots: Path) -> None:
    page = _open(browser, f"{lab}/?", scheme)

    assert page.url.split("?")[0].endswith(f"/lab/tree/{START_PAGE}")
    expect(page.get_by_role("heading", name="Start here")).to_be_visible()
    assert page.locator("body").get_attribute("data-jp-theme-light") == str(scheme == "light").lower()
    page.locator(".jp-RenderedMermaid svg, .jp-RenderedMermaid img").first.wait_for()
    page.screenshot(path=screenshots / f"lab-start-{scheme}.png")
    files = page.locator(".jp-DirListing-itemText").all_inner_texts()
    assert not {"conftest.py", "ruff.toml", "records"} & set(files)
    assert page.locator(".Toastify__toast, .jp-Dialog").count() == 0
    page.get_by_role("link", name="Reproduce the failure of Triton 24.08").first.click()
    page.get_by_role("heading", name=re.compile("^Reproduce the failure")).first.wait_for()
    page.close()


def test_lab_runs_the_failure_and_its_panel_starts_the_failing_server(
    browser: Browser, lab: str, screenshots: Path
) -> None:
    page = _open(browser, f"{lab}/lab/tree/{FAILURE}.ipynb?")
    run_all(page)
    start = page.locator(BUTTON, has_text="Start")
    start.click()

    panel = page.locator(".jupyter-widgets", has_text="ensemble: refused").first
    expect(panel).to_contain_text("exited with code 1", timeout=PATIENCE_MS)
    expect(panel).to_contain_text(ENSEMBLE_REFUSED)
    has_run_without_errors(page)
    start.scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "lab-01-panel.png")
    page.close()


def test_lab_chat_box_answers_word_by_word_after_run_all_and_stop_ends_its_server(
    browser: Browser, lab: str, home: Path, screenshots: Path
) -> None:
    page = _open(browser, f"{lab}/lab/tree/{INFERENCE}.ipynb?", "dark")
    run_all(page)
    has_run_without_errors(page)
    page.locator("textarea").fill("Do words appear one after another?")
    answer = page.locator(".jupyter-widgets:has(> .jupyter-button) > .widget-html .widget-html-content").first
    _note_changes(answer)
    page.locator(BUTTON, has_text="Ask").click()

    expect(answer).to_contain_text("one after another?", timeout=PATIENCE_MS)
    seen = page.evaluate("() => window.seen")
    assert len(seen) > 3
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))
    answer.scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "lab-06-chat.png")
    (server,) = _servers_of(home)
    assert server.idle
    page.locator(BUTTON, has_text="Stop").last.click()
    page.locator(".jupyter-widgets", has_text="is stopped").first.wait_for()
    assert _servers_of(home) == []
    page.close()


def test_start_page_shows_running_servers_and_stops_one(
    browser: Browser, lab: str, home: Path, screenshots: Path
) -> None:
    page = _open(browser, f"{lab}/lab/tree/{INFERENCE}.ipynb?")
    run_all(page)
    has_run_without_errors(page)
    page.close()  # the tab; its kernel and server live on

    start = _open(browser, f"{lab}/lab/tree/{START_PAGE}?")
    run_all(start)
    (server,) = _servers_of(home)
    row = start.locator(".widget-hbox", has_text=f"{INFERENCE} at {server.http_url}")
    row.wait_for()
    start.screenshot(path=screenshots / "lab-start-servers.png")
    row.locator(BUTTON, has_text="Stop").click()

    row.wait_for(state="detached")
    assert _servers_of(home) == []
    start.close()


def _servers_of(home: Path) -> list[RunningServer]:
    return [server for server in running_servers() if str(home) in " ".join(server.process.cmdline())]


def _note_changes(element: Locator) -> None:
    """Keep every text that an element shows in the page's `seen`."""
    element.evaluate("""(element) => {
        window.seen = [];
        new MutationObserver(() => window.seen.push(element.innerText))
          .observe(element, {childList: true, subtree: true, characterData: true});
    }""")


def is_ready(page: Page, name: str) -> None:
    """Wait until a notebook is the one in front, with its kernel: JupyterLab first opens what was open before."""
    page.locator("#jp-main-dock-panel .lm-TabBar-tab.jp-mod-current", has_text=name).wait_for()
    page.locator(CELLS).first.wait_for()
    page.locator("#jp-main-statusbar", has_text="| Idle").wait_for()  # else JupyterLab asks which kernel to take


def run_all(page: Page) -> None:
    """Run all cells; a menu that JupyterLab draws anew under the click is opened once more."""
    began = page.locator(f"{CELLS} .jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]:")).first
    for patience_ms in (MENU_MS, MENU_MS, PATIENCE_MS):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator(".lm-Menu-item", has_text=re.compile(r"^Run All Cells")).first.click()
        with contextlib.suppress(PageTimeout):
            began.wait_for(state="attached", timeout=patience_ms)
            return
    raise PageTimeout(f"No cell began to run. Dialogs: {page.locator('.jp-Dialog').all_inner_texts()}")


def has_run_without_errors(page: Page) -> None:
    last = page.locator(CELLS).last.locator(".jp-InputPrompt", has_text=re.compile(r"\[\d+\]:"))
    wrong = page.locator("[data-mime-type='application/vnd.jupyter.error'], [data-mime-type$='.stderr']")
    try:
        last.or_(wrong).first.wait_for(state="attached")
    except PageTimeout as error:
        prompts = page.locator(f"{CELLS} .jp-InputPrompt").all_inner_texts()
        dialogs = page.locator(".jp-Dialog").all_inner_texts()
        status = page.locator("#jp-main-statusbar").inner_text()
        told = f"The page did not finish. Cells: {prompts}. Status bar: {status!r}. Dialogs: {dialogs}"
        raise PageTimeout(told) from error
    assert wrong.all_inner_texts() == []
