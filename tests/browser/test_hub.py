# SPDX-License-Identifier: Apache-2.0
"""Five seats of a workshop at once: a real JupyterHub, a real browser, one shared server behind nginx."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from ensemblekit.assets.store import build_once
from ensemblekit.paths import cache_dir, repo_root
from ensemblekit.servers.ports import free_ports, is_free
from ensemblekit.servers.supervised import wait_until
from ensemblekit.settings import check_settings
from ensemblekit.workshop.gate import KEY_FILE, Limits, Seat
from ensemblekit.workshop.shared import SharedServer
from tests.browser.test_lab import INFERENCE, PATIENCE_MS, has_run_without_errors, is_ready, run_all

SEATS = 5
PROXY = "configurable-http-proxy@5.1.0"
START_S = 120.0

pytestmark = [
    pytest.mark.server,
    pytest.mark.notebook,
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("jupyterhub"), reason="JupyterHub is not installed (--dev)"),
    pytest.mark.skipif(not shutil.which("npm"), reason="needs npm, for JupyterHub's proxy"),
    pytest.mark.skipif(not shutil.which("nginx", path="/usr/sbin:/usr/bin"), reason="needs nginx"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """The server that all seats ask, with the stand-in."""
    patch = pytest.MonkeyPatch()
    patch.setenv("ENSEMBLEKIT_RUN_DIR", str(tmp_path_factory.mktemp("workshop")))
    settings = check_settings(ENGINE="stand-in", FLAVOUR="base-plus-vllm", DEVICE="cpu")
    port = next(port for port in free_ports(200) if is_free(port + 1) and is_free(port + 2))
    with SharedServer(settings, seats=SEATS, host="0.0.0.0", port=port, limits=Limits()) as made:
        yield made
    patch.undo()


@pytest.fixture(scope="module")
def proxy() -> Path:
    """The folder of JupyterHub's proxy program, fetched once from npm."""

    def fetch(draft: Path) -> None:
        subprocess.run(["npm", "install", "--silent", "--prefix", draft, PROXY], check=True, timeout=1200)

    return build_once(cache_dir() / "hub-proxy" / PROXY, fetch) / "node_modules" / ".bin"


@pytest.fixture(scope="module")
def hub(shared: SharedServer, proxy: Path) -> Iterator[str]:
    """The address of a hub with the kit's own configuration."""
    folder = Path(tempfile.mkdtemp(prefix="kit-hub-"))  # short: it holds sockets
    outer, inner = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    environment = os.environ | {
        "PATH": f"{proxy}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ENSEMBLEKIT_SEATS": str(shared.gate.folder / KEY_FILE),
        "ENSEMBLEKIT_SERVER": f"127.0.0.1:{shared.gate.port}",
        "ENSEMBLEKIT_HUB_DIR": str(folder),
        "ENSEMBLEKIT_HUB_URL": outer,
        "ENSEMBLEKIT_HUB_INNER_URL": inner,
        "ENSEMBLEKIT_HUB_PROXY_URL": f"http://127.0.0.1:{free_ports(1)[0]}",
    }
    environment.pop("ENSEMBLEKIT_BATCH", None)
    log_path = folder / "hub.log"
    configuration = repo_root() / "env" / "jupyterhub" / "jupyterhub_config.py"
    with log_path.open("wb") as log:
        command = [sys.executable, "-m", "jupyterhub", "-f", str(configuration)]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
    try:
        running = wait_until(
            lambda: "JupyterHub is now running" in log_path.read_text() or process.poll() is not None or None, START_S
        )
        assert running, log_path.read_text()
        assert process.poll() is None, log_path.read_text()
        yield outer
    finally:
        process.terminate()  # the hub stops its seats and its proxy
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def sign_in(browser: Browser, hub: str, seat: Seat) -> Page:
    page = browser.new_context(viewport={"width": 1300, "height": 1000}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(hub)
    page.fill("#username_input", seat.name)
    page.fill("#password_input", seat.key)
    page.click("#login_submit")
    return page


def test_five_seats_run_lesson_06_at_once_against_the_shared_server(
    browser: Browser, hub: str, shared: SharedServer, screenshots: Path
) -> None:
    pages = [sign_in(browser, hub, seat) for seat in shared.seats]
    for page, seat in zip(pages, shared.seats, strict=True):
        page.get_by_role("heading", name="Start here").wait_for()
        page.goto(f"{hub}/user/{seat.name}/lab/tree/{INFERENCE}.ipynb")
    for page in pages:
        is_ready(page, INFERENCE)
        run_all(page)

    for page in pages:
        has_run_without_errors(page)

    pages[0].screenshot(path=screenshots / "hub-06.png")
    asked = (shared.gate.folder / "requests.log").read_text()
    assert all(f" {seat.name} 200 " in asked for seat in shared.seats)


def test_wrong_key_does_not_sign_in(browser: Browser, hub: str, shared: SharedServer) -> None:
    page = sign_in(browser, hub, Seat(shared.seats[0].name, shared.seats[1].key))

    page.locator(".login_error").wait_for()
    assert "Invalid username or password" in page.locator(".login_error").inner_text()
