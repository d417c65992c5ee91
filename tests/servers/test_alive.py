# SPDX-License-Identifier: Apache-2.0
"""`alive` on real servers whose ready is 200 all the time: only the one that answers is alive."""

import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest

from ensemblekit.diagnose.alive import ask_alive
from ensemblekit.servers.process import TritonServer
from tests.conftest import DATA, START_TIMEOUT_S, ServerMaker, slowdown

pytestmark = [pytest.mark.server]
DEADLINE_S = 3.0
LATE_S = 60.0


@pytest.fixture
def a_server(make_server: ServerMaker, report_repository: Path) -> TritonServer:
    """A server on the report's repository with Python models."""
    server = make_server(report_repository)
    server.start(START_TIMEOUT_S)
    return server


def _ready(server: TritonServer) -> int:
    return httpx.get(f"http://{server.http_url}/v2/health/ready", trust_env=False).status_code


def _stubs(server: TritonServer, model: str) -> list[psutil.Process]:
    assert server.pid is not None
    children = psutil.Process(server.pid).children(recursive=True)
    return [one for one in children if f"/{model}/" in " ".join(one.cmdline())]


def test_healthy_ensemble_is_found_by_itself_and_alive(a_server: TritonServer) -> None:
    found = ask_alive(a_server.http_url, deadline_s=LATE_S)

    assert (found.alive, found.model, found.found) == (True, "ensemble", "answered")
    assert found.elapsed_s < DEADLINE_S * slowdown()
    print(f"healthy: {found}")


def test_dead_stub_is_not_alive_though_the_server_may_say_ready(a_server: TritonServer) -> None:
    stubs = _stubs(a_server, "pre")
    assert stubs
    for stub in stubs:
        os.kill(stub.pid, signal.SIGKILL)
    found = ask_alive(a_server.http_url, deadline_s=DEADLINE_S)
    psutil.Process(a_server.pid).kill()  # a polite stop would wait for the request that nobody answers

    assert not found.alive
    assert found.elapsed_s < DEADLINE_S + slowdown()
    print(f"dead stub: {found}")


def test_stopped_stub_is_not_alive_within_the_deadline_while_ready_says_200(a_server: TritonServer) -> None:
    """A stub that hangs: SIGSTOP holds it as an endless loop would."""
    stubs = _stubs(a_server, "pre")
    for stub in stubs:
        os.kill(stub.pid, signal.SIGSTOP)
    try:
        found = ask_alive(a_server.http_url, deadline_s=DEADLINE_S)
        assert _ready(a_server) == httpx.codes.OK
    finally:
        for stub in stubs:
            os.kill(stub.pid, signal.SIGCONT)

    assert (found.alive, found.found) == (False, "gave no answer within 3 s")
    assert found.elapsed_s < DEADLINE_S + slowdown()
    print(f"hanging stub: {found}")


def test_decoupled_model_with_several_responses_is_alive(make_server: ServerMaker) -> None:
    server = make_server(DATA / "decoupled_repository")
    server.start(START_TIMEOUT_S)
    names = [path.parent.name for path in (DATA / "decoupled_repository").glob("*/config.pbtxt")]

    assert all(ask_alive(server.http_url, name).alive for name in names)


def test_unknown_model_is_not_alive_and_says_what_triton_says(a_server: TritonServer) -> None:
    found = ask_alive(a_server.http_url, "absent")

    assert not found.alive
    assert "unknown model: 'absent'" in found.found


def test_nobody_there_is_not_alive() -> None:
    found = ask_alive("127.0.0.1:9")

    assert (found.alive, found.found) == (False, "is not reachable (ConnectError)")


class _Endless(BaseHTTPRequestHandler):
    """A byte every tenth of a second, for ever."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while not self.server.over.wait(0.1):  # type: ignore[attr-defined]
                self.wfile.write(b"[")
                self.wfile.flush()
        except OSError:
            return

    def log_message(self, *args: object) -> None:
        """Be quiet."""


@pytest.fixture
def a_fake_endless_server() -> Iterator[str]:
    """The address of a fake that never ends its answer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endless)
    server.over = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.over.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_answer_that_never_ends_is_given_up_at_the_deadline(a_fake_endless_server: str) -> None:
    found = ask_alive(a_fake_endless_server, deadline_s=1.0)

    assert (found.alive, found.found) == (False, "gave no answer within 1 s")
    assert found.elapsed_s < 1.0 + slowdown()
