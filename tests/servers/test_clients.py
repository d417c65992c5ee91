# SPDX-License-Identifier: Apache-2.0
"""The clients against a real server with a decoupled Python model, asked directly and through an ensemble."""

import asyncio
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelStreamInferResponse
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from ensemblekit.clients.grpc import ask, ask_many, model_statistics, stream
from ensemblekit.clients.http import ask_http, curl_command, stream_http
from ensemblekit.errors import RequestError
from ensemblekit.faults.log import read_log
from ensemblekit.releases import get_release
from ensemblekit.servers.attach import AttachedServer
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import TritonServer
from tests.conftest import DATA

CANCELLED_WITHIN_S = 2.0
NOWHERE = AttachedServer("127.0.0.1:9", "127.0.0.1:9", "127.0.0.1:9")  # the discard port: nothing listens there

pytestmark = pytest.mark.server
both = pytest.mark.parametrize("model", ["words", "ensemble"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A 24.08 server with the decoupled repository."""
    folder = tmp_path_factory.mktemp("clients")
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", folder)
    with TritonServer(installation, DATA / "decoupled_repository", folder) as server:
        yield server


@both
def test_ask_gives_the_whole_answer_in_one_piece(server: TritonServer, model: str) -> None:
    answer = ask(server, "Hi", model=model)

    assert answer.pieces == ("Hi 0 Hi 1 Hi 2 ",)
    assert answer.question == "Hi"


@both
def test_ask_streaming_gives_pieces_that_join_to_the_whole(server: TritonServer, model: str) -> None:
    answer = ask(server, "Hi", model=model, streaming=True, sampling_parameters={"pause_s": 0.05})

    assert answer.pieces == ("Hi 0 ", "Hi 1 ", "Hi 2 ")
    assert answer.text == ask(server, "Hi", model=model).text
    assert 0 < answer.first_token_s < answer.elapsed_s


@both
def test_stream_yields_a_piece_before_the_last_is_made(server: TritonServer, model: str) -> None:
    begin = time.monotonic()
    pieces = stream(server, "Hi", model=model, sampling_parameters={"words": 4, "pause_s": 1.0})

    assert next(pieces) == "Hi 0 "
    assert time.monotonic() - begin < 3.0
    assert list(pieces) == ["Hi 1 ", "Hi 2 ", "Hi 3 "]


@both
def test_ask_many_answers_at_once_and_in_order(server: TritonServer, model: str) -> None:
    begin = time.monotonic()
    answers = asyncio.run(ask_many(server, list("abcdefgh"), model=model, sampling_parameters={"pause_s": 1.0}))

    assert [answer.text for answer in answers] == [f"{letter} 0 {letter} 1 {letter} 2 " for letter in "abcdefgh"]
    assert time.monotonic() - begin < 8 * 1.0


def test_ask_text_that_is_not_ascii_comes_back_whole(server: TritonServer) -> None:
    assert ask(server, "où ça? 漢字", sampling_parameters={"words": 1}).text == "où ça? 漢字 0 "


def _cancellations(server: TritonServer) -> int:
    return read_log(server.log_path).count("words: cancelled after")


def test_stream_left_early_cancels_the_request_in_the_model(server: TritonServer) -> None:
    before = _cancellations(server)

    for _piece in stream(server, "Hi", model="words", sampling_parameters={"words": 100, "pause_s": 0.05}):
        break

    deadline = time.monotonic() + CANCELLED_WITHIN_S
    while _cancellations(server) == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _cancellations(server) == before + 1


def test_stream_left_early_through_the_ensemble_runs_on_as_upstream_says(server: TritonServer) -> None:
    # triton-inference-server/server#6739: the ensemble scheduler looks at cancellation between steps only
    before = _cancellations(server)

    for _piece in stream(server, "Hi", sampling_parameters={"words": 10, "pause_s": 0.05}):
        break

    time.sleep(0.05 * 10 + 0.2)
    assert _cancellations(server) == before


@both
def test_ask_http_gives_the_whole_answer(server: TritonServer, model: str) -> None:
    assert ask_http(server, "Hi", model=model) == "Hi 0 Hi 1 Hi 2 "


@both
def test_stream_http_yields_the_pieces(server: TritonServer, model: str) -> None:
    pieces = stream_http(server, "Hi", model=model, sampling_parameters={"words": 2})

    assert list(pieces) == ["Hi 0 ", "Hi 1 "]


@both
@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_command_typed_into_a_shell_gives_the_answer(server: TritonServer, model: str) -> None:
    command = curl_command(server, "it's $HOME", model=model, sampling_parameters={"words": 1})

    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=600)

    assert json.loads(done.stdout)["text_output"] == "it's $HOME 0 "


def test_ask_unknown_model_says_so_with_a_hint(server: TritonServer) -> None:
    with pytest.raises(RequestError, match=r"unknown model: 'nope'[\s\S]*Hint: .*v2/repository/index"):
        ask(server, "Hi", model="nope")


def test_ask_many_unknown_model_says_so(server: TritonServer) -> None:
    with pytest.raises(RequestError, match="unknown model: 'nope'"):
        asyncio.run(ask_many(server, ["Hi"], model="nope"))


@pytest.mark.parametrize(
    "call", [ask_http, lambda *args, **kw: list(stream_http(*args, **kw))], ids=["whole", "stream"]
)
def test_http_unknown_model_says_so(server: TritonServer, call: object) -> None:
    with pytest.raises(RequestError, match="HTTP 404: Request for unknown model: 'nope'"):
        call(server, "Hi", model="nope")  # type: ignore[operator]


@both
def test_ask_http_several_responses_is_an_error_although_the_status_is_200(server: TritonServer, model: str) -> None:
    with pytest.raises(RequestError, match="HTTP 200: generate expects model to produce exactly 1 response"):
        ask_http(server, "Hi", model=model, sampling_parameters={"split": True})


@both
def test_stream_model_fails_midway_gives_the_pieces_then_the_error(server: TritonServer, model: str) -> None:
    pieces = stream(server, "Hi", model=model, sampling_parameters={"fail_after": 1})

    assert next(pieces) == "Hi 0 "
    with pytest.raises(RequestError, match="told to fail after 1"):
        next(pieces)


@both
def test_stream_http_model_fails_midway_gives_the_error(server: TritonServer, model: str) -> None:
    with pytest.raises(RequestError, match="told to fail after 1"):
        list(stream_http(server, "Hi", model=model, sampling_parameters={"fail_after": 1}))


@both
def test_ask_model_fails_next_request_is_unharmed(server: TritonServer, model: str) -> None:
    with pytest.raises(RequestError, match="told to fail after 0"):
        ask(server, "Hi", model=model, sampling_parameters={"fail_after": 0})

    assert ask(server, "Hi", model=model, sampling_parameters={"words": 1}).text == "Hi 0 "


def test_ask_no_answer_in_time_names_the_limit(server: TritonServer) -> None:
    with pytest.raises(RequestError, match=r"within 0\.2 s[\s\S]*no response[\s\S]*Hint: .*timeout_s"):
        ask(server, "Hi", model="words", sampling_parameters={"pause_s": 0.8}, timeout_s=0.2)


def test_ask_many_no_answer_in_time_names_the_limit(server: TritonServer) -> None:
    with pytest.raises(RequestError, match=r"within 0\.2 s"):
        asyncio.run(ask_many(server, ["Hi"], model="words", sampling_parameters={"pause_s": 0.8}, timeout_s=0.2))


def test_ask_http_no_answer_in_time_names_the_limit(server: TritonServer) -> None:
    with pytest.raises(RequestError, match=r"no response within 0\.2 s"):
        ask_http(server, "Hi", model="words", sampling_parameters={"pause_s": 0.8}, timeout_s=0.2)


def test_ask_server_gone_says_refused() -> None:
    with pytest.raises(RequestError, match=r"Connection refused"):
        ask(NOWHERE, "Hi")


def test_ask_many_server_gone_says_refused() -> None:
    with pytest.raises(RequestError, match=r"Connection refused"):
        asyncio.run(ask_many(NOWHERE, ["Hi"]))


def test_ask_http_server_gone_says_refused() -> None:
    with pytest.raises(RequestError, match=r"Connection refused"):
        ask_http(NOWHERE, "Hi")


def test_model_statistics_after_a_request_count_it(server: TritonServer) -> None:
    before = model_statistics(server)

    ask(server, "Hi", sampling_parameters={"pause_s": 0.05})

    after = model_statistics(server)
    assert sorted(after) == ["ensemble", "words"]
    assert {name: after[name].requests - before[name].requests for name in after} == {
        "ensemble": 1,
        "words": 1,
    }


def test_model_statistics_server_gone_says_refused() -> None:
    with pytest.raises(RequestError, match="Connection refused"):
        model_statistics(NOWHERE)


class FakeServerThatNeverEndsAStream(GRPCInferenceServiceServicer):
    """Sends the last response and leaves the stream open, as Triton 24.07 was seen to do once."""

    def ModelStreamInfer(self, requests: Iterator[ModelInferRequest], context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Answer the first request, then wait until the client is gone."""
        next(requests)
        response = ModelStreamInferResponse()
        output = response.infer_response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
        output.contents.bytes_contents.append(b"all")
        response.infer_response.parameters["triton_final_response"].bool_param = True
        yield response
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait(60)


def test_stream_that_a_fake_server_never_ends_is_closed_by_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemblekit.clients.grpc.CLOSE_TIMEOUT_S", 0.5)
    fake = grpc.server(ThreadPoolExecutor(2))
    add_GRPCInferenceServiceServicer_to_server(FakeServerThatNeverEndsAStream(), fake)
    address = f"127.0.0.1:{fake.add_insecure_port('127.0.0.1:0')}"
    fake.start()
    try:
        begin = time.monotonic()
        answer = ask(AttachedServer("127.0.0.1:9", address, "127.0.0.1:9"), "Hi")
    finally:
        fake.stop(None).wait()

    assert answer.text == "all"
    assert time.monotonic() - begin < 30
