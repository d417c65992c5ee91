# SPDX-License-Identifier: Apache-2.0
"""A server in a container: starts, answers, stops, says what it runs, and leaves nothing."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from ensemblekit.clients.grpc import ask
from ensemblekit.diagnose.preflight import preflight
from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from ensemblekit.lesson.lesson import open_lesson
from ensemblekit.releases import get_release
from ensemblekit.servers.container import install_container
from tests.containers.conftest import MakeServer
from tests.containers.engine import STAND_INS, Podman

START_TIMEOUT_S = 120.0
GONE_S = 40.0  # grace of the reaper and of the engine
BASE = f"{STAND_INS}:24.08-py3"
QUESTION = "What is the capital of France?"
ANSWER = f"(stand-in) You asked: {QUESTION}"
PARENT = """
import sys, time
from pathlib import Path
from ensemblekit.diagnose.preflight import preflight
from ensemblekit.releases import get_release
from ensemblekit.servers.container import install_container
from ensemblekit.servers.process import TritonServer
installation = install_container(get_release("24.08"), "vllm-image", "killed", image=sys.argv[3])
server = TritonServer(installation, Path(sys.argv[1]), Path(sys.argv[2]))
print("starting", flush=True)
server.start(120)
print("ready", flush=True)
time.sleep(600)
"""


def test_vllm_image_stand_in_fails_with_the_line_of_the_report(make_server: MakeServer, podman: Podman) -> None:
    server = make_server("vllm-image")

    outcome = server.attempt_start(START_TIMEOUT_S)

    assert (outcome.kind, outcome.exit_code) == ("exited", 1)
    assert outcome.poll_errors == (ENSEMBLE_REFUSED,)
    assert outcome.last_line == "error: creating server: Internal - failed to load all models"
    assert outcome.loaded == ("llm", "postprocess", "preprocess")
    assert server.installation.emulated
    assert podman.state()["containers"] == []


def test_base_stand_in_starts_answers_and_stops_without_a_trace(make_server: MakeServer, podman: Podman) -> None:
    before = podman.state()
    server = make_server(image=BASE)

    server.start(START_TIMEOUT_S)
    answer = ask(server, QUESTION)
    running = podman.state()
    server.stop()

    assert answer.text == ANSWER
    assert not server.installation.emulated
    assert len(running["containers"]) == 1
    assert running["processes"]
    assert podman.state() == before


def test_container_mounts_are_read_only_and_labels_name_the_run(make_server: MakeServer, podman: Podman) -> None:
    server = make_server(image=BASE, explicit=True).start(START_TIMEOUT_S)

    (inspected,) = json.loads(podman.run("inspect", server.installation.name).stdout)

    assert inspected["Config"]["Labels"]["ensemblekit.run"] == "container-test"
    assert [(mount["Destination"], mount["RW"]) for mount in inspected["Mounts"]] == [("/models", False)]
    assert inspected["HostConfig"]["ShmSize"] == 2**30
    assert not inspected["HostConfig"]["Devices"]
    assert server.log_path.stat().st_size > 0


def test_published_ports_are_on_loopback_alone(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENSEMBLEKIT_CONTAINER_NETWORK")
    server = make_server(image=BASE, explicit=True)
    outcome = server.attempt_start(START_TIMEOUT_S)
    if not outcome.ready and outcome.exit_code in (125, 126, 127):
        pytest.skip(f"this host's podman cannot publish ports: {outcome.last_line}")

    listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port
                 in (server.http_port, server.grpc_port, server.metrics_port)}  # fmt: skip

    assert listening <= {"127.0.0.1"}
    for address in _other_addresses():
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{address}:{server.http_port}/v2/health/ready", timeout=3, trust_env=False)


def _other_addresses() -> list[str]:
    entries = [entry for entries in psutil.net_if_addrs().values() for entry in entries]
    return [e.address for e in entries if e.family == socket.AF_INET and not e.address.startswith("127.")]


def test_backends_in_an_image_are_listed(settings: Podman) -> None:
    installation = install_container(get_release("24.08"), "vllm-image", "test", image=BASE)

    folders = installation.backend_folders()

    assert sorted(folders) == ["python"]
    assert "triton_python_backend_stub" in folders["python"]


def test_lesson_records_image_and_digest(tmp_path: Path, podman: Podman) -> None:
    lesson = open_lesson("digest_test", PROVIDER="container", ENGINE="stand-in")

    outcome = lesson.attempt_start(lesson.server(lesson.repository()))
    lesson.record(exit_code=outcome.exit_code)

    record = json.loads((tmp_path / "run" / "records" / "digest_test.json").read_text())
    image = f"{STAND_INS}:24.08-vllm-python-py3"
    (digest,) = podman.lines("image", "inspect", "--format={{index .RepoDigests 0}}", image)
    assert record["images"] == {image: digest}
    assert "@sha256:" in digest
    assert record["exit_code"] == 1


@pytest.mark.parametrize("word", ["starting", "ready"])
def test_parent_killed_leaves_no_container(
    word: str, tmp_path: Path, podman: Podman, make_server: MakeServer, repository: object
) -> None:
    before = podman.state()
    command = [sys.executable, "-c", PARENT, str(tmp_path / "models"), str(tmp_path / "server"), BASE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        while parent.stdout.readline().strip() != word:
            assert parent.poll() is None
        if word == "starting":  # the engine makes the container just now
            time.sleep(0.7)
        parent.kill()

    deadline = time.monotonic() + GONE_S
    while podman.state() != before and time.monotonic() < deadline:
        time.sleep(0.5)
    assert podman.state() == before


def test_preflight_finds_the_engine_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENSEMBLEKIT_ENGINE")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")  # a docker client may be here, without its daemon

    assert [row.found for row in preflight() if row.name == "container engine"] == ["podman runs"]
