# SPDX-License-Identifier: Apache-2.0
"""The BLS form of the pipeline gives what the ensemble gives, on a real server with the stand-in for `llm`."""

import asyncio
import json
from collections.abc import Iterator

import httpx
import pytest

from ensemblekit.clients.grpc import ask, ask_many
from ensemblekit.errors import RequestError
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import TritonServer

pytestmark = pytest.mark.server
SAMPLING = {"max_tokens": 20}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A 24.08 server with both pipelines."""
    folder = tmp_path_factory.mktemp("bls")
    staged = stage_repository(folder / "models", source=None, device="cpu", bls=True)
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", folder)
    with TritonServer(installation, staged.path, folder) as server:
        yield server


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
def test_bls_sends_the_pieces_that_the_ensemble_sends(server: TritonServer, streaming: bool) -> None:
    ensemble, bls = (
        ask(server, "How are you?", model=model, sampling_parameters=SAMPLING, streaming=streaming)
        for model in ("ensemble", "bls")
    )

    assert bls.pieces == ensemble.pieces
    assert len(bls.pieces) == (6 if streaming else 1)


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "How are you?"},
]


@pytest.mark.parametrize("model", ["ensemble", "bls"])
def test_conversation_is_answered_and_a_text_like_a_list_is_a_question(server: TritonServer, model: str) -> None:
    texts = (json.dumps(CHAT), "[sic] or not?")

    answers = [ask(server, text, model=model, sampling_parameters=SAMPLING).text for text in texts]

    assert answers == ["(stand-in) You asked: How are you?", "(stand-in) You asked: [sic] or not?"]


@pytest.mark.parametrize("model", ["ensemble", "bls"])
@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("[]", "chat_input is a conversation without a message"),
        ('[{"role": "king", "content": "Hi"}]', "message 1 of chat_input has the role 'king'; it must be one of"),
        ('[{"role": "user"}]', "message 1 of chat_input has no content; it must be a text"),
        (json.dumps([*CHAT, {"role": "user", "content": "more " * 2048}]), "words; this stand-in's context holds 2048"),
    ],
    ids=["empty", "role", "content", "long"],
)
def test_conversation_that_cannot_be_served_gives_one_clear_error(
    server: TritonServer, model: str, chat: str, message: str
) -> None:
    reply = httpx.post(f"http://{server.http_url}/v2/models/{model}/generate", json={"chat_input": chat}, timeout=600)

    assert reply.status_code == httpx.codes.BAD_REQUEST
    error = reply.json()["error"]
    assert message in error
    assert ".py" not in error
    assert "\n" not in error


def test_bls_answers_many_at_once_each_with_its_own(server: TritonServer) -> None:
    questions = [f"number {count}" for count in range(40)]

    answers = asyncio.run(ask_many(server, questions, model="bls", sampling_parameters=SAMPLING))

    assert [answer.text.rsplit(" ", 2)[1:] for answer in answers] == [question.split() for question in questions]


def test_bls_passes_on_the_error_of_a_composing_model(server: TritonServer) -> None:
    with pytest.raises(RequestError, match="chat_input is empty"):
        ask(server, "  ", model="bls", sampling_parameters=SAMPLING)
