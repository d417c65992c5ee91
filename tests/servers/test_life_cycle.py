# SPDX-License-Identifier: Apache-2.0
"""A server's life: started, watched, refused, stopped, and what a reader is told when it does not go well."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ensemblekit.clients.grpc import ask
from ensemblekit.clients.http import load_model, model_states
from ensemblekit.errors import (
    PortBusy,
    RepositoryError,
    RequestError,
    ServerExited,
    ServerNotReady,
    ServerStuck,
    UnsupportedMachine,
)
from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from ensemblekit.releases import Flavour, get_release
from ensemblekit.servers.embedded import GLIBC_TEST_VARIABLE, install_embedded
from ensemblekit.servers.ports import is_free
from ensemblekit.servers.process import ServerOptions, TritonServer
from tests.conftest import DATA, START_TIMEOUT_S, ServerMaker

BARE_PATH = "/usr/local/bin:/usr/bin:/bin"
DETECTED_S = 20.0  # a server that waits for ever is noticed and stopped within this, not after its whole timeout

pytestmark = pytest.mark.server


def test_start_stub_without_its_library_is_stuck_and_names_the_library(
    make_server: ServerMaker, report_repository: Path
) -> None:
    server = make_server(report_repository)
    server.installation = replace(
        server.installation, environment=server.installation.environment | {"LD_LIBRARY_PATH": ""}
    )

    with pytest.raises(ServerStuck) as caught:
        server.start(START_TIMEOUT_S)

    text = str(caught.value)
    assert "error while loading shared libraries" in text
    assert "Hint: " in text.splitlines()[-1]
    assert ".so" in text.splitlines()[-1]
    assert float(text.split("after ")[1].split(" s")[0]) < DETECTED_S
    assert server.pid is None


def test_start_server_without_its_library_exited_and_names_the_library(
    make_server: ServerMaker, report_repository: Path, tmp_path: Path
) -> None:
    server = make_server(report_repository)
    alone = tmp_path / "tritonserver"  # away from the folder of its libraries
    shutil.copy2(server.installation.binary, alone)
    server.installation = replace(server.installation, binary=alone, environment={})

    with pytest.raises(ServerExited) as caught:
        server.start(START_TIMEOUT_S)

    assert caught.value.exit_code == 127
    assert ".so" in caught.value.hint


@pytest.fixture(scope="module")
def good_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A 24.08 server with ensembles, in explicit mode with nothing loaded."""
    folder = tmp_path_factory.mktemp("good")
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", folder)
    with TritonServer(installation, DATA / "report_repository", folder, ServerOptions(explicit=True)) as server:
        yield server


def test_load_api_with_ensembles_answers_200(good_server: TritonServer) -> None:
    answers = [load_model(good_server, name).status for name in ("pre", "main_app", "ensemble")]

    assert answers == [200, 200, 200]
    assert model_states(good_server) == {"ensemble": "READY", "main_app": "READY", "pre": "READY"}


def test_second_server_beside_the_first_answers_too(good_server: TritonServer, make_server: ServerMaker) -> None:
    second = make_server(DATA / "report_repository", explicit=True)

    second.start(START_TIMEOUT_S)

    assert good_server.answers()
    assert second.answers()
    assert set(_ports(good_server)).isdisjoint(_ports(second))


def _ports(server: TritonServer) -> tuple[int, int, int]:
    return server.http_port, server.grpc_port, server.metrics_port


def test_start_on_a_busy_port_names_the_process(make_server: ServerMaker, report_repository: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        server = make_server(report_repository, ports=(port, port + 1, port + 2))

        with pytest.raises(PortBusy) as caught:
            server.start(START_TIMEOUT_S)

    assert f"use port {port}" in str(caught.value)
    assert f"pid {os.getpid()}" in caught.value.found
    assert not server.log_path.exists()


def test_start_without_the_flag_exits_with_the_reason_the_log_and_a_hint(
    make_server: ServerMaker, report_repository: Path
) -> None:
    server = make_server(report_repository, flavour="vllm-image")

    with pytest.raises(ServerExited) as caught:
        server.start(START_TIMEOUT_S)

    lines = str(caught.value).splitlines()
    assert lines[0] == f"Could not get Triton 24.08 ready within {START_TIMEOUT_S:g} s."
    assert "it exited with code 1" in lines[1]
    assert ENSEMBLE_REFUSED in lines[1]
    assert "error: creating server: Internal - failed to load all models" in lines
    assert f"Log: {server.log_path}" in lines
    assert lines[-1].startswith("Hint: vllm-image of 24.08 was built without --backend=ensemble")
    assert caught.value.exit_code == 1


@pytest.fixture
def slow_repository(tmp_path: Path) -> Path:
    """A repository whose one model takes a minute to load."""
    model = tmp_path / "slow_repository" / "slow"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text('backend: "python"\ninstance_group [ { kind: KIND_CPU } ]\n')
    (model / "1" / "model.py").write_text(
        "import time\nclass TritonPythonModel:\n    def initialize(self, args):\n        time.sleep(60)\n"
    )
    return model.parent


def test_start_slower_than_its_timeout_is_not_ready_and_is_stopped(
    make_server: ServerMaker, slow_repository: Path
) -> None:
    server = make_server(slow_repository)
    begin = time.monotonic()

    with pytest.raises(ServerNotReady) as caught:
        server.start(1.5)

    lines = str(caught.value).splitlines()
    assert "within 1.5 s" in lines[0]
    assert "still loading, and was stopped" in lines[1]
    assert any('"loading: slow:1"' in line for line in lines)
    assert "READY_TIMEOUT_S" in lines[-1]
    assert time.monotonic() - begin < DETECTED_S
    assert server.pid is None
    assert all(is_free(port) for port in _ports(server))


def test_stop_twice_does_nothing_the_second_time(make_server: ServerMaker, report_repository: Path) -> None:
    server = make_server(report_repository, explicit=True).start(START_TIMEOUT_S)
    children = psutil.Process(server.pid).children(recursive=True)

    server.stop()
    server.stop()

    assert children
    assert not any(child.is_running() for child in children)
    assert not list(Path("/dev/shm").glob(f"{server._shm_prefix}*"))


def test_stop_before_start_does_nothing(make_server: ServerMaker, report_repository: Path) -> None:
    make_server(report_repository).stop()


def test_start_after_stop_is_ready_again(make_server: ServerMaker, report_repository: Path) -> None:
    server = make_server(report_repository, explicit=True).start(START_TIMEOUT_S)
    server.stop()

    assert server.start(START_TIMEOUT_S).answers()


@pytest.fixture(scope="module")
def half_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A 24.08 server without ensembles that stays although the ensemble was refused."""
    folder = tmp_path_factory.mktemp("half")
    installation = install_embedded(get_release("24.08"), "vllm-image", folder)
    options = ServerOptions(exit_on_error=False)
    with TritonServer(installation, DATA / "decoupled_repository", folder, options) as server:
        yield server


def test_exit_on_error_off_is_ready_without_the_ensemble(half_server: TritonServer) -> None:
    assert half_server.answers()
    assert model_states(half_server) == {"ensemble": "(none)", "words": "READY"}


def test_exit_on_error_off_request_to_the_ensemble_is_unknown_model(half_server: TritonServer) -> None:
    with pytest.raises(RequestError, match="unknown model"):
        ask(half_server, "Hello")


def test_exit_on_error_off_other_models_answer(half_server: TritonServer) -> None:
    assert ask(half_server, "Hello", model="words", sampling_parameters={"words": 1}).text == "Hello 0 "


def test_load_api_without_the_flag_answers_500_and_hides_the_reason(
    make_server: ServerMaker, report_repository: Path
) -> None:
    server = make_server(report_repository, flavour="vllm-image", explicit=True).start(START_TIMEOUT_S)

    answer = load_model(server, "ensemble")

    assert answer.status == 500
    assert "failed to poll" in answer.body
    assert "unexpected platform" not in answer.body
    assert ENSEMBLE_REFUSED in server.log_path.read_text()


def test_server_for_a_repository_that_is_not_there_is_refused_before_anything_starts(
    make_server: ServerMaker, tmp_path: Path
) -> None:
    with pytest.raises(RepositoryError, match=r"no such folder[\s\S]*Hint: give the folder"):
        make_server(tmp_path / "nowhere")


def test_install_on_an_old_glibc_names_both_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(GLIBC_TEST_VARIABLE, "2.31")

    with pytest.raises(UnsupportedMachine) as caught:
        install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path)

    assert "glibc 2.31; the wheels need 2.35 or newer" in str(caught.value)
    assert "Ubuntu 22.04" in caught.value.hint


@pytest.mark.parametrize("release", ["24.07", "24.09"])
def test_release_without_the_flag_fails_with_the_line_of_the_report(make_server: ServerMaker, release: str) -> None:
    outcome = make_server(DATA / "decoupled_repository", release, "vllm-image").attempt_start(START_TIMEOUT_S)

    assert (outcome.kind, outcome.exit_code) == ("exited", 1)
    assert outcome.poll_errors == (ENSEMBLE_REFUSED,)
    assert outcome.loaded == ("words",)


@pytest.mark.parametrize(
    ("release", "flavour"),
    [("24.07", "base-plus-vllm"), ("24.09", "custom-build"), ("24.10", "vllm-image")],
)
def test_release_with_the_flag_answers_through_the_ensemble(
    make_server: ServerMaker, release: str, flavour: Flavour
) -> None:
    server = make_server(DATA / "decoupled_repository", release, flavour).start(START_TIMEOUT_S)

    assert ask(server, "Hello", sampling_parameters={"words": 2}).text == "Hello 0 Hello 1 "


def test_shell_command_typed_into_a_bare_shell_starts_the_server(
    make_server: ServerMaker, report_repository: Path, tmp_path: Path
) -> None:
    server = make_server(report_repository, extra=("--exit-timeout-secs=1",))

    with (
        (tmp_path / "typed.log").open("wb") as log,
        subprocess.Popen(
            ["sh", "-c", server.shell_command], env={"PATH": BARE_PATH}, stdout=log, stderr=log, start_new_session=True
        ) as typed,
    ):
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (answers := server.answers()) and typed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if typed.poll() is None:
            os.killpg(typed.pid, signal.SIGTERM)

    assert answers, (tmp_path / "typed.log").read_text()[-2000:]
