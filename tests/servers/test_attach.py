# SPDX-License-Identifier: Apache-2.0
"""Provider `attach`: a running server is used as it is, and never stopped."""

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ensemblekit.cli.serve import choose_ports
from ensemblekit.clients.grpc import ask
from ensemblekit.errors import ParameterError, ServerNotReady
from ensemblekit.lesson.lesson import open_lesson, parameters
from ensemblekit.releases import get_release
from ensemblekit.servers.attach import URL_VARIABLE, AttachedServer
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.ports import free_ports, is_free
from ensemblekit.servers.process import ServerOptions, TritonServer
from tests.conftest import DATA

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def others_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that somebody else started, with its ports in a row as in Triton's defaults."""
    folder = tmp_path_factory.mktemp("attach")
    first = next(port for port in range(21000, 31000, 10) if _three_free(port))
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", folder)
    options = ServerOptions(ports=(first, first + 1, first + 2))
    with TritonServer(installation, DATA / "decoupled_repository", folder, options) as server:
        yield server


def _three_free(first: int) -> bool:
    for port in range(first, first + 3):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return False
    return True


@pytest.mark.parametrize("form", ["{}", "http://{}", "http://{}/"], ids=["bare", "scheme", "slash"])
def test_attach_to_a_running_server_answers(others_server: TritonServer, form: str) -> None:
    attached = AttachedServer.at(form.format(others_server.http_url)).start()

    assert ask(attached, "Hi", sampling_parameters={"words": 1}).text == "Hi 0 "
    assert attached.metrics_url == others_server.metrics_url


def test_attach_to_an_address_for_grpc_of_its_own_answers(others_server: TritonServer) -> None:
    (other,) = free_ports(1)
    url = f"http://127.0.0.1:{other},grpc://{others_server.grpc_url}"

    assert AttachedServer.at(url).grpc_url == others_server.grpc_url
    assert AttachedServer.at(url).metrics_url == f"127.0.0.1:{other + 2}"
    attached = AttachedServer.at(f"{others_server.http_url},{others_server.grpc_url}").start()
    assert ask(attached, "Hi", sampling_parameters={"words": 1}).text == "Hi 0 "


def test_page_that_takes_a_url_uses_the_one_of_the_whole_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(
        user_ns={"__annotations__": {"URL": str, "PROVIDER": str}, "URL": "", "PROVIDER": "embedded"}
    )
    monkeypatch.setattr("ensemblekit.lesson.lesson.get_ipython", lambda: shell)
    monkeypatch.setenv(URL_VARIABLE, "10.0.0.7:8000")

    assert parameters() == {"URL": "10.0.0.7:8000", "PROVIDER": "attach"}
    shell.user_ns["URL"] = "10.0.0.8:8000"
    assert parameters()["URL"] == "10.0.0.8:8000"


def test_server_listens_where_it_is_told_and_nowhere_else(tmp_path: Path) -> None:
    """127.0.0.2 is an address that the default one does not answer at, on every Linux."""
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path)
    options = ServerOptions(host="127.0.0.2")
    with TritonServer(installation, DATA / "decoupled_repository", tmp_path, options) as server:
        assert ask(server, "Hi", sampling_parameters={"words": 1}).text == "Hi 0 "
        assert server.http_url == f"127.0.0.2:{server.http_port}"
        assert is_free(server.http_port)
        assert not is_free(server.metrics_port)


def test_attach_stopped_leaves_the_server_running(others_server: TritonServer) -> None:
    with AttachedServer.at(others_server.http_url) as attached:
        pass
    attached.stop()

    assert others_server.answers()


def test_lesson_attached_and_stopped_leaves_the_server_running(others_server: TritonServer) -> None:
    lesson = open_lesson("attach_test", PROVIDER="attach", URL=others_server.http_url, ENGINE="stand-in")

    server = lesson.serve()
    assert ask(server, "Hi", sampling_parameters={"words": 1}).text == "Hi 0 "
    lesson.stop()

    assert others_server.answers()


def test_lesson_attached_asked_for_a_server_of_its_own_says_what_to_change(
    others_server: TritonServer,
) -> None:
    lesson = open_lesson("attach_test", PROVIDER="attach", URL=others_server.http_url, ENGINE="stand-in")

    with pytest.raises(ParameterError, match=r"PROVIDER 'attach'[\s\S]*Hint: run it with PROVIDER 'embedded'"):
        lesson.server(DATA / "decoupled_repository")


@pytest.mark.parametrize("url", ["", "localhost", "localhost:", ":8000", "localhost:http", "https://host:8000"])
def test_attach_url_of_another_form_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ParameterError, match=r"not of the form host:port[\s\S]*127\.0\.0\.1:8000"):
        AttachedServer.at(url)


def test_attach_nothing_there_names_the_address_and_the_command_to_try() -> None:
    (port,) = free_ports(1)

    with pytest.raises(ServerNotReady) as caught:
        AttachedServer.at(f"127.0.0.1:{port}").start(timeout_s=0.3)

    assert "Connection refused" in caught.value.found
    assert f"curl -i http://127.0.0.1:{port}/v2/health/ready" in caught.value.hint


def test_attach_to_the_metrics_endpoint_is_noticed(others_server: TritonServer) -> None:
    metrics = AttachedServer.at(others_server.metrics_url)  # answers 200 to any path

    with pytest.raises(ServerNotReady, match="not that of a server's HTTP endpoint"):
        metrics.start(timeout_s=0.3)


def test_attach_never_looks_without_time_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    times = list[float]()

    def fake_state(_server: AttachedServer, left_s: float) -> str:
        times.append(left_s)
        return "HTTP 503"

    monkeypatch.setattr(AttachedServer, "_state", fake_state)
    monkeypatch.setattr("ensemblekit.servers.attach.POLL_S", 0.4)  # on a busy machine a short sleep takes as long

    with pytest.raises(ServerNotReady, match=r"within 0\.3 s\.\nFound: HTTP 503"):
        AttachedServer.at("127.0.0.1:1").start(timeout_s=0.3)
    assert min(times) > 0.5


def test_ports_of_a_shared_server_are_in_a_row_unless_told_otherwise() -> None:
    assert choose_ports(None, None) is None
    assert choose_ports(8000, None) == (8000, 8001, 8002)
    http, grpc, metrics = choose_ports(8000, 9001) or (0, 0, 0)
    assert (http, grpc) == (8000, 9001)
    assert metrics not in (http, grpc)
