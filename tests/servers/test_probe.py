# SPDX-License-Identifier: Apache-2.0
"""The probe on real servers: every release with and without ensembles, other layouts, running servers, exit codes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from ensemblekit.clients.http import model_states
from ensemblekit.diagnose.probe.start import PROBE_MODEL, probe_binary
from ensemblekit.diagnose.probe.target import probe_target
from ensemblekit.errors import ParameterError, RequestError
from ensemblekit.releases import FLAVOURS, get_release, has_ensembles, list_releases
from ensemblekit.servers.embedded import SERVER, server_tree
from ensemblekit.servers.ports import free_ports
from ensemblekit.servers.process import TritonServer
from tests.conftest import START_TIMEOUT_S, ServerMaker

pytestmark = [pytest.mark.server]
OPEN_CONTROL = ("--model-control-mode=explicit",)  # as a reader starts one: without the kit's key
PROGRAM = Path(sys.executable).with_name("ensemblekit")
EVERY = [(row.name, flavour) for row in list_releases() for flavour in FLAVOURS[:2]]


@pytest.mark.parametrize(("release", "flavour"), EVERY, ids=["-".join(pair) for pair in EVERY])
@pytest.mark.parametrize("static", [False, True], ids=["started", "library-read"])
def test_probe_release_agrees_with_the_table(release: str, flavour: str, static: bool) -> None:
    answer = probe_target(f"{release}/{flavour}", static=static)

    assert answer.ensembles is has_ensembles(get_release(release), flavour)  # type: ignore[arg-type]
    assert answer.evidence


def test_probe_of_a_server_without_ensembles_shows_what_the_api_hides() -> None:
    answer = probe_target("24.08/vllm-image")

    assert "unexpected platform type 'ensemble'" in str(answer)
    assert "--backend=ensemble" in answer.hint


def test_probe_root_in_nvidias_layout(tmp_path: Path) -> None:
    tree = server_tree(get_release("24.08"))
    for name, source in {"bin": tree / SERVER / "bin", "lib": tree / "nvidia_pytriton.libs"}.items():
        (tmp_path / name).mkdir()
        for file in source.iterdir():
            os.link(file, tmp_path / name / file.name)

    assert probe_target(str(tmp_path)).ensembles is True
    assert probe_target(str(tmp_path / "bin" / "tritonserver"), static=True).ensembles is True


@pytest.mark.parametrize("place", ["", "pytriton/tritonserver", "pytriton/tritonserver/bin/tritonserver"])
def test_probe_wheel_tree(place: str) -> None:
    tree = server_tree(get_release("24.09"), ensembles=False)

    assert probe_target(str(tree / place)).ensembles is False


def test_probe_stand_in_program_without_some_options_is_started_without_them(tmp_path: Path) -> None:
    real = server_tree(get_release("24.08")) / SERVER / "bin" / "tritonserver"
    lean = tmp_path / "tritonserver"  # as a build without gRPC refuses the option
    lean.write_text(
        f"""#!/bin/sh
case "$*" in *--allow-grpc*) echo "$0: unrecognized option '--allow-grpc=false'"; exit 1;; esac
exec {real} --allow-grpc=false "$@"
"""
    )
    lean.chmod(0o755)

    assert probe_binary(lean, tmp_path, environment={}).ensembles is True


@pytest.mark.parametrize(
    ("target", "code"),
    [("24.08/vllm-image", 1), ("24.08/base-plus-vllm", 0), ("24.08/vanilla", 2), ("/nowhere", 2)],
)
def test_probe_command_exit_code_is_the_verdict(target: str, code: int) -> None:
    done = subprocess.run([PROGRAM, "probe", target, "--json"], capture_output=True, text=True, check=False)

    assert done.returncode == code
    assert json.loads(done.stdout)["exit_code"] == code
    assert "Traceback" not in done.stderr


def _servers_below(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.NoSuchProcess):
            if str(folder) in " ".join(process.info["cmdline"] or []) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


KILLED = """
import pathlib, sys, time
import ensemblekit.diagnose.probe.start as probe
probe._ask = lambda *words: time.sleep(60)
probe.probe_binary(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), environment={})
"""


@pytest.mark.parametrize("path", [None, "/nonexistent"], ids=["kernel", "reaper"])
def test_probe_killed_leaves_no_server(tmp_path: Path, path: str | None) -> None:
    binary = server_tree(get_release("24.08")) / SERVER / "bin" / "tritonserver"
    environment = os.environ | ({"PATH": path} if path else {})
    prober = subprocess.Popen([sys.executable, "-c", KILLED, binary, tmp_path / "probe"], env=environment)
    _until(lambda: bool(_servers_below(tmp_path / "probe" / "repository")))
    prober.send_signal(signal.SIGKILL)
    prober.wait()

    _until(lambda: not _servers_below(tmp_path / "probe" / "repository"))


def _until(true: object) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def a_running_server(make_server: ServerMaker, report_repository: Path) -> TritonServer:
    server = make_server(report_repository, extra=OPEN_CONTROL)
    return server.start(START_TIMEOUT_S)


def test_probe_url_without_permission_asks_nothing_of_it_and_could_not_tell(a_running_server: TritonServer) -> None:
    answer = probe_target(a_running_server.http_url)

    assert answer.ensembles is None
    assert "2.49.0" in answer.evidence[0]
    assert "--allow-load" in answer.hint
    assert "loading" not in a_running_server.log_path.read_text()


@pytest.mark.parametrize(("flavour", "verdict"), [("base-plus-vllm", True), ("vllm-image", False)])
def test_probe_url_that_may_load_tells_and_leaves_nothing(
    make_server: ServerMaker, report_repository: Path, flavour: str, verdict: bool
) -> None:
    server = make_server(report_repository, flavour=flavour, extra=OPEN_CONTROL).start(START_TIMEOUT_S)
    before = model_states(server)
    answer = probe_target(f"http://{server.http_url}", allow_load=True)

    assert answer.ensembles is verdict
    assert model_states(server) == before
    assert PROBE_MODEL not in before


def test_probe_url_of_a_server_with_a_key_could_not_tell_and_says_why(
    make_server: ServerMaker, report_repository: Path
) -> None:
    server = make_server(report_repository, explicit=True).start(START_TIMEOUT_S)
    answer = probe_target(server.http_url, allow_load=True)

    assert answer.ensembles is None
    assert "holders of its key" in answer.hint


def test_probe_url_of_a_loaded_ensemble_needs_no_permission(make_server: ServerMaker, report_repository: Path) -> None:
    server = make_server(report_repository).start(START_TIMEOUT_S)

    assert probe_target(server.http_url).ensembles is True
    assert "READY" in probe_target(server.http_url).evidence[1]


def test_probe_url_without_model_control_could_not_tell(make_server: ServerMaker, report_repository: Path) -> None:
    server = make_server(report_repository, flavour="vllm-image", exit_on_error=False)
    server.start(START_TIMEOUT_S)
    answer = probe_target(server.http_url, allow_load=True)

    assert answer.ensembles is None
    assert any("without any state" in line and "ensemble" in line for line in answer.evidence)
    assert "explicit" in answer.hint


def test_probe_url_where_nothing_answers_names_the_port() -> None:
    (port,) = free_ports(1)
    with pytest.raises(RequestError, match=f"127.0.0.1:{port}"):
        probe_target(f"127.0.0.1:{port}")


class _Other(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>It works!</html>")

    def log_message(self, *_words: object) -> None:
        pass


def test_probe_url_where_something_else_answers_says_so() -> None:
    with HTTPServer(("127.0.0.1", 0), _Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(RequestError, match="not a Triton server's HTTP endpoint"):
                probe_target(f"127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


def test_probe_allow_load_of_files_is_refused() -> None:
    with pytest.raises(ParameterError, match="--allow-load"):
        probe_target("24.08", allow_load=True)
