# SPDX-License-Identifier: Apache-2.0
"""Clients of OpenAI's API before the ensemble: the gateway on a real server with the stand-in for `llm`."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import psutil
import pytest

from ensemblekit.diagnose.alive import ask_alive
from ensemblekit.errors import PortBusy
from ensemblekit.paths import RUN_DIR_VARIABLE
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.openai import KEY_VARIABLE, OpenAIGateway
from ensemblekit.servers.ports import is_free
from ensemblekit.servers.process import TritonServer
from ensemblekit.servers.supervised import wait_until
from tests.conftest import ServerMaker

WORD_S = 0.1
QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one two three four"}]
ANSWER = "(stand-in) You asked: one two three four"
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}
ENDED_S = 20.0

pytestmark = pytest.mark.server


@pytest.fixture(scope="module", params=["24.08", "24.10"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server whose stand-in takes its time for each word."""
    folder = tmp_path_factory.mktemp("openai")
    staged = stage_repository(folder / "models", source=None, device="cpu", openai=True, stand_in_token_s=WORD_S)
    installation = install_embedded(get_release(request.param), "base-plus-vllm", folder)
    with TritonServer(installation, staged.path, folder) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(server: TritonServer) -> Iterator[OpenAIGateway]:
    """The gateway before that server."""
    with OpenAIGateway(server) as gateway:
        yield gateway


def post(gateway: OpenAIGateway, key: str = "", **body: Any) -> httpx.Response:
    """Ask for a chat completion."""
    url, headers = f"{gateway.base_url}/chat/completions", {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(url, json={"model": "chat", "messages": QUESTION, **body}, headers=headers, timeout=600)


def events(gateway: OpenAIGateway, **body: Any) -> list[tuple[float, dict[str, Any]]]:
    """Return the events of a stream, each with the second at which it came; `[DONE]` ends them."""
    url, begin = f"{gateway.base_url}/chat/completions", time.monotonic()
    asked = {"model": "chat", "messages": QUESTION, "stream": True, **body}
    with httpx.stream("POST", url, json=asked, timeout=600) as response:
        assert response.status_code == httpx.codes.OK
        lines = [(time.monotonic() - begin, line) for line in response.iter_lines() if line]
    assert lines[-1][1] == "data: [DONE]"
    return [(at, json.loads(line.removeprefix("data: "))) for at, line in lines[:-1]]


def texts(came: list[tuple[float, dict[str, Any]]], index: int = 0) -> list[str]:
    """Return the pieces of one sequence of a stream."""
    choices = [one for _, event in came for one in event["choices"] if one["index"] == index]
    return [one["delta"]["content"] for one in choices if one["delta"].get("content")]


def test_whole_answer_has_text_reason_and_usage(gateway: OpenAIGateway) -> None:
    answer = post(gateway).json()

    assert answer["object"] == "chat.completion"
    assert answer["model"] == "chat"
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": ANSWER}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}


def test_streamed_pieces_come_one_after_another(gateway: OpenAIGateway) -> None:
    post(gateway)  # the first request of a server waits for its processes

    came = events(gateway, stream_options={"include_usage": True})

    assert "".join(texts(came)) == ANSWER
    at = [second for second, event in came if event["choices"] and event["choices"][0]["delta"].get("content")]
    assert len(at) == len(ANSWER.split())
    assert all(later - earlier > WORD_S / 4 for earlier, later in pairwise(at))
    assert [event["choices"][0]["finish_reason"] for _, event in came[:-1]] == [None] * len(at) + [None, "stop"]
    assert came[0][1]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [event["usage"] for _, event in came[:-1]] == [None] * (len(came) - 1)
    assert came[-1][1]["choices"] == []
    assert came[-1][1]["usage"] == {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}


def test_stream_has_no_usage_unless_asked(gateway: OpenAIGateway) -> None:
    assert not [event for _, event in events(gateway) if "usage" in event]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_limit_ends_the_answer_and_is_the_reason(gateway: OpenAIGateway, limit: str) -> None:
    (choice,) = post(gateway, **{limit: 4}).json()["choices"]

    assert choice["message"]["content"] == "(stand-in) You asked: one"
    assert choice["finish_reason"] == "length"


def test_stop_ends_the_answer_whole_and_streamed(gateway: OpenAIGateway) -> None:
    whole, streamed = post(gateway, stop=["three"]).json(), events(gateway, stop="three")

    assert whole["choices"][0]["message"]["content"] == "".join(texts(streamed)) == "(stand-in) You asked: one two "
    assert whole["choices"][0]["finish_reason"] == streamed[-1][1]["choices"][0]["finish_reason"] == "stop"


def test_several_sequences_come_whole_and_streamed(gateway: OpenAIGateway) -> None:
    sampled = {"n": 3, "temperature": 1.0, "seed": 7}

    whole, streamed = post(gateway, **sampled).json(), events(gateway, **sampled)

    said = [choice["message"]["content"] for choice in whole["choices"]]
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert len(set(said)) > 1
    assert said == ["".join(texts(streamed, index)) for index in range(3)]
    assert whole["usage"]["completion_tokens"] == 21


def test_what_changes_no_answer_is_let_through(gateway: OpenAIGateway) -> None:
    harmless = {"user": "me", "tools": [], "logprobs": False, "stop": None, "response_format": {"type": "text"}}

    assert post(gateway, **harmless).status_code == httpx.codes.OK


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "gpt-4"}, 404, "the model 'gpt-4' does not exist; here is chat"),
        ({"model": None}, 404, "the model 'None' does not exist; here is chat"),
        ({"messages": "Hi"}, 400, "messages must be a list of objects with role and content"),
        ({"messages": [{"content": "Hi"}]}, 400, "messages must be a list of objects with role and content"),
        ({"messages": []}, 400, "chat_input is a conversation without a message"),
        (
            {"messages": [{"role": "king", "content": "Hi"}]},
            400,
            "message 1 of chat_input has the role 'king'; it must",
        ),
        ({"messages": [IMAGE]}, 400, "message 1 of chat_input has a part that is no text"),
        ({"messages": [{"role": "user", "content": "a " * 3000}]}, 400, "this stand-in's context holds 2048"),
        ({"temprature": 1}, 400, 'unknown sampling parameter "temprature"'),
        ({"max_tokens": 0}, 400, "max_tokens must be a whole number, at least 1, not 0"),
        ({"n": 100}, 400, "n must be at most 64, got 100"),
        ({"tools": [{"type": "function"}]}, 400, "tools is not supported here"),
        (
            {"response_format": {"type": "json_schema"}},
            400,
            "response_format must be text, json_object, or json_schema",
        ),
    ],
    ids=[
        *("model", "no-model", "no-list", "no-role", "empty", "role", "image", "long"),
        *("parameter", "zero", "many", "tools", "format"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_error_has_openais_shape_and_the_backends_sentence(
    gateway: OpenAIGateway, body: dict[str, Any], status: int, message: str, stream: bool
) -> None:
    response = post(gateway, **body, stream=stream)

    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]
    assert "ensemble" not in error["message"]


def test_body_that_is_no_json_and_address_that_is_none_have_openais_shape(gateway: OpenAIGateway) -> None:
    url = f"{gateway.base_url}/chat/completions"
    cut = httpx.post(url, content='{"model":', headers={"Content-Type": "application/json"})
    form = httpx.post(url, content='{"model": "chat"}', headers={"Content-Type": "text/plain"})
    nowhere, wrong_verb = httpx.get(f"{gateway.base_url}/audio"), httpx.get(url)

    replies = (cut, form, nowhere, wrong_verb)
    assert [reply.status_code for reply in replies] == [400, 400, 404, 405]
    assert {reply.json()["error"]["type"] for reply in replies} == {"invalid_request_error"}


def test_models_are_the_one(gateway: OpenAIGateway) -> None:
    listed = httpx.get(f"{gateway.base_url}/models").json()

    assert [one["id"] for one in listed["data"]] == ["chat"]
    assert httpx.get(f"{gateway.base_url}/models/chat").json() == listed["data"][0]
    assert httpx.get(f"{gateway.base_url}/models/gpt-4").status_code == httpx.codes.NOT_FOUND


def test_many_at_once_get_each_its_own_answer_and_the_bad_ones_their_error(gateway: OpenAIGateway) -> None:
    def ask(number: int) -> str:
        if number % 4 == 0:
            return str(post(gateway, bogus=number).json()["error"]["message"])
        messages = [{"role": "user", "content": f"number {number}"}]
        if number % 2:
            return "".join(texts(events(gateway, messages=messages, max_tokens=6)))
        return str(post(gateway, messages=messages, max_tokens=6).json()["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(ask, range(32)))

    bad = 'unknown sampling parameter "bogus"'
    assert answers == [f"(stand-in) You asked: number {one}" if one % 4 else bad for one in range(32)]


def test_client_that_leaves_does_not_end_the_others(gateway: OpenAIGateway) -> None:
    url = f"{gateway.base_url}/chat/completions"
    asked = {"model": "chat", "messages": QUESTION, "stream": True}
    with httpx.stream("POST", url, json=asked, timeout=600) as response:
        next(response.iter_lines())

    assert "".join(texts(events(gateway))) == ANSWER


def test_ensemble_that_tells_nothing_is_served_without_usage(server: TritonServer) -> None:
    with OpenAIGateway(server, model="ensemble") as gateway:
        whole = post(gateway, model="ensemble").json()
        streamed = events(gateway, model="ensemble", stream_options={"include_usage": True})

    assert whole["choices"][0]["message"]["content"] == "".join(texts(streamed)) == ANSWER
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"] is streamed[-1][1]["usage"] is None
    assert streamed[-2][1]["choices"][0]["finish_reason"] == "stop"


def test_key_is_asked_for_where_there_is_one(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "s3cret")
    with OpenAIGateway(server) as gateway:
        right, wrong, none = (post(gateway, key) for key in ("s3cret", "guess", ""))
        listed = httpx.get(f"{gateway.base_url}/models")
        in_the_process_list = [word for word in psutil.Process(gateway_pid(gateway)).cmdline() if "s3cret" in word]

    assert right.status_code == httpx.codes.OK
    assert [reply.status_code for reply in (wrong, none, listed)] == [401] * 3
    assert wrong.json()["error"]["code"] == "invalid_api_key"
    assert in_the_process_list == []


def test_probe_without_a_name_asks_the_ensemble_that_a_question_alone_is_enough_for(server: TritonServer) -> None:
    found = ask_alive(server.http_url, deadline_s=60)

    assert (found.alive, found.model, found.found) == (True, "ensemble", "answered")


def gateway_pid(gateway: OpenAIGateway) -> int:
    """Return who listens on its port."""
    port = int(re.findall(r":(\d+)/", gateway.base_url)[0])
    return next(one.pid for one in psutil.net_connections("tcp") if one.laddr.port == port and one.status == "LISTEN")


def test_off_this_machine_there_is_always_a_key(server: TritonServer) -> None:
    with OpenAIGateway(server, host="0.0.0.0") as gateway:
        assert len(gateway.key) == 32
        assert post(gateway).status_code == httpx.codes.UNAUTHORIZED
        assert post(gateway, gateway.key).status_code == httpx.codes.OK


def test_busy_port_is_said_before_anything_is_started(server: TritonServer, gateway: OpenAIGateway) -> None:
    port = int(re.findall(r":(\d+)/", gateway.base_url)[0])

    with pytest.raises(PortBusy, match="listens on it"):
        OpenAIGateway(server, port=port).start()


def test_gateway_ends_with_its_server_and_leaves_nothing(
    make_server: ServerMaker, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = stage_repository(tmp_path / "models", source=None, device="cpu", openai=True)
    server = make_server(staged.path).start()
    gateway = OpenAIGateway(server).start()
    pid = gateway_pid(gateway)

    server.kill()

    assert wait_until(lambda: not gateway.running or None, ENDED_S)
    assert not psutil.pid_exists(pid)
    gateway.stop()


def test_serve_prints_where_openais_clients_go_and_stops_both(tmp_path: Any) -> None:
    command = [
        sys.executable,
        "-m",
        "ensemblekit.cli.main",
        "serve",
        "--engine",
        "stand-in",
        "--device",
        "cpu",
        "--openai",
    ]
    environment = os.environ | {RUN_DIR_VARIABLE: str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "OpenAI" in line)
        url = re.findall(r"model chat at (http://127\.0\.0\.1:\d+/v1)", line)[0]
        asked = {"model": "chat", "messages": QUESTION}
        answer = httpx.post(f"{url}/chat/completions", json=asked, timeout=600).json()
        process.terminate()  # a shell that runs the tests in the background has SIGINT ignored
        process.wait(ENDED_S)

    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert is_free(int(url.split(":")[2].removesuffix("/v1")))


def test_openais_own_client_gets_its_answer_its_stream_and_its_errors(gateway: OpenAIGateway) -> None:
    openai = pytest.importorskip("openai", reason="needs the openai package: scripts/lab --openai")
    client = openai.OpenAI(base_url=gateway.base_url, api_key="none", max_retries=0)

    answer = client.chat.completions.create(model="chat", messages=QUESTION)
    chunks = list(client.chat.completions.create(model="chat", messages=QUESTION, stream=True))

    assert answer.choices[0].message.content == ANSWER
    assert answer.usage.total_tokens == 16
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="temperature must be a number"):
        client.chat.completions.create(model="chat", messages=QUESTION, temperature=-1)
