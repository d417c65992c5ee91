# SPDX-License-Identifier: Apache-2.0
"""The retrieval repository on real servers, with the stand-in for `llm`: the doctor's verdicts, answers, sources."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from ensemblekit.diagnose.doctor.report import DoctorReport, Plan
from ensemblekit.diagnose.doctor.run import examine
from ensemblekit.diagnose.lint.run import lint_repository
from ensemblekit.errors import RequestError
from ensemblekit.lesson.retrieval import CountingClient, measure_ways
from ensemblekit.paths import RUN_DIR_VARIABLE
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import TritonServer
from tests.conftest import START_TIMEOUT_S

pytestmark = pytest.mark.server
QUESTION = "Is guided decoding still there?"
SOURCE = "upgrading.md, Requests, 25.11"
WAYS = ("retrieval", "retrieval_bls")


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository, with the pipeline in both forms."""
    folder = tmp_path_factory.mktemp("retrieval") / "models"
    return stage_repository(folder, source=None, device="cpu", retrieval=True, bls=True).path


@pytest.fixture(scope="module", params=["24.08", "24.10"])
def server(request: pytest.FixtureRequest, staged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The HTTP address of a server with both."""
    folder = tmp_path_factory.mktemp("server")
    installation = install_embedded(get_release(request.param), "base-plus-vllm", folder)
    with TritonServer(installation, staged, folder) as server:
        yield server.http_url


def ask(server: str, model: str, question: str = QUESTION, verb: str = "generate", **more: Any) -> httpx.Response:
    """Ask a model for an answer."""
    sampling = json.dumps({"max_tokens": 200})
    body = {"question": question, "sampling_parameters": sampling, **more}
    return httpx.post(f"http://{server}/v2/models/{model}/{verb}", json=body, timeout=600)


def states(found: DoctorReport) -> dict[str, str]:
    """Return how each check ended, without what is the machine's."""
    return {check.name: check.state for check in found.checks if check.name != "preflight"}


@pytest.mark.parametrize("release", ["24.08", "24.10"])
def test_lint_has_no_error(staged: Path, release: str) -> None:
    assert not lint_repository(staged, release=release).errors


@pytest.mark.parametrize("release", ["24.08", "24.10"])
def test_doctor_is_green_where_there_are_ensembles(
    staged: Path, release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
    found = examine(Plan(staged, server=f"{release}/base-plus-vllm", ready_timeout_s=START_TIMEOUT_S))

    assert states(found) == {"probe": "ok", "lint": "ok", "start": "ok", "request": "ok"}
    assert "(stand-in) You asked: " in found.checks[-1].facts["answer"]


def test_doctor_is_red_on_the_shipped_image_and_says_why(
    staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
    found = examine(Plan(staged, server="24.08/vllm-image", force=True, ready_timeout_s=START_TIMEOUT_S))

    assert states(found) == {"probe": "error", "lint": "error", "start": "error", "request": "skipped"}
    (start,) = (check for check in found.checks if check.name == "start")
    assert "retrieval: this server was built without ensembles" in start.headline
    assert "unexpected platform type 'ensemble' for retrieval" in str(found)


@pytest.mark.parametrize("model", WAYS)
def test_answer_carries_its_sources(server: str, model: str) -> None:
    answer = ask(server, model).json()

    assert answer["text_output"].startswith("(stand-in) You asked: ")
    assert answer["text_output"].endswith(f"\n\nAnswer in one sentence: {QUESTION}")
    assert answer["sources"][0] == SOURCE


@pytest.mark.parametrize("model", WAYS)
def test_each_piece_of_a_stream_carries_them_too(server: str, model: str) -> None:
    lines = ask(server, model, verb="generate_stream", stream=True).text.splitlines()
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line]

    assert "".join(piece["text_output"] for piece in pieces).endswith(f"Answer in one sentence: {QUESTION}")
    assert len(pieces) > len(QUESTION.split())
    assert {piece["sources"][0] for piece in pieces} == {SOURCE}


@pytest.mark.parametrize("model", WAYS)
def test_many_at_once_get_each_their_own(server: str, model: str) -> None:
    questions = [f"What is number {number}?" for number in range(40)]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda question: ask(server, model, question).json()["text_output"], questions))

    assert [answer.rpartition("sentence: ")[2] for answer in answers] == questions


@pytest.mark.parametrize("model", WAYS)
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"question": " "}, "question must have 1 to 4000 letters, not 0"),
        ({"question": "long " * 1000}, "question must have 1 to 4000 letters, not 4999"),
        ({"sampling_parameters": "[]"}, "sampling_parameters must be a JSON object"),
        ({"sampling_parameters": '{"max_token": 5}'}, 'unknown sampling parameter "max_token"'),
    ],
    ids=["empty", "long", "no object", "misspelt"],
)
def test_what_a_step_refuses_reaches_the_client_in_its_words(
    server: str, model: str, asked: dict[str, str], message: str
) -> None:
    reply = ask(server, model, **asked)

    assert reply.status_code == httpx.codes.BAD_REQUEST
    assert message in reply.json()["error"]
    assert ".py" not in reply.json()["error"]


def test_client_counts_its_requests_and_raises_what_was_refused(server: str) -> None:
    """Infer for a model that answers once, generate for one that is decoupled."""
    with CountingClient(SimpleNamespace(http_url=server)) as client:
        vector = client("embed", question=QUESTION)["vector"]
        assert client("retrieve", vector=vector)["sources"][0] == SOURCE
        assert client("retrieval", question=QUESTION)["sources"][0] == SOURCE
        assert client.round_trips == 3
        with pytest.raises(RequestError, match="question must have 1 to 4000 letters"):
            client("embed", question=" ")


def test_ways_are_measured_for_each_answer(server: str) -> None:
    def twice(client: CountingClient, question: str) -> None:
        client("embed", question=question)
        client("embed", question=question)

    served = SimpleNamespace(http_url=server)
    found = measure_ways(served, {"twice": twice}, ["One?", "Two?"], clients=2, rounds=1, away_ms=30)["twice"]

    assert found.round_trips == 2
    assert 2 * 256 < found.moved_bytes < 50_000
    assert found.answers_per_s < 2 / 0.06


MEETING = """
import asyncio
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    here = 0

    async def execute(self, requests):
        await asyncio.gather(*(self.respond(request) for request in requests))

    async def respond(self, request):
        self.here += 1
        for _ in range(6000):
            if self.here >= {count}:
                break
            await asyncio.sleep(0.01)
        text = np.array([str(self.here).encode()], dtype=np.object_)
        response = pb_utils.InferenceResponse([pb_utils.Tensor("text_output", text)])
        request.get_response_sender().send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.mark.parametrize("model", [*WAYS, "bls"])
def test_more_answers_are_under_way_at_once_than_a_python_model_has_threads_unasked(model: str, tmp_path: Path) -> None:
    """An `llm` that answers nobody before all have asked.

    asyncio's own threads are four more than cores, Triton's are 32 for an instance; 128 is what the kit makes of both.
    """
    count = 120
    staged = stage_repository(tmp_path / "models", source=None, device="cpu", retrieval=model != "bls", bls=True).path
    (staged / "llm" / "1" / "model.py").write_text(MEETING.replace("{count}", str(count)))
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path)
    with TritonServer(installation, staged, tmp_path) as server, ThreadPoolExecutor(count) as threads:
        replies = list(threads.map(lambda _: ask(server.http_url, model, chat_input=QUESTION).json(), range(count)))

    assert [reply.get("text_output") for reply in replies] == [str(count)] * count
