# SPDX-License-Identifier: Apache-2.0
"""Responses: in order, one last one, and no question to Triton after it."""

import importlib
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit import backend_support
from tests.unit.backend_support import Sender, wait_for

POLLS = 3


@pytest.fixture
def responses(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    backend_support.install(monkeypatch)
    module = importlib.import_module("triton_vllm.responses")
    monkeypatch.setattr(module, "CANCEL_POLL_S", 0.01)
    made = module.ResponseSender()
    yield made
    made.stop()


class ARequest:
    """A request as far as responses use it."""

    def __init__(self) -> None:
        self.sender: Sender | None = Sender()
        self.triton = self.sender  # what Triton was sent, also after the last response
        self.lock = threading.Lock()
        self.additional = None


def test_pieces_come_in_order_and_the_last_closes(responses: Any) -> None:
    request = ARequest()

    responses.chunk(request, lambda: ["a"], final=False)
    wait_for(lambda: request.triton.sent)
    responses.chunk(request, lambda: ["b"], final=True)
    wait_for(lambda: request.triton.closed)

    assert [response.text("text_output") for response, _ in request.triton.sent] == ["a", "b"]
    assert [flags for _, flags in request.triton.sent] == [0, 1]


def test_pieces_that_wait_for_their_turn_are_sent_as_one_for_each_sequence(responses: Any) -> None:
    busy, request, go_on = ARequest(), ARequest(), threading.Event()

    responses.chunk(busy, lambda: [str(go_on.wait(5.0))], final=True)
    for number in range(3):
        responses.chunk(request, lambda number=number: [f"a{number}", f"b{number}"], final=number == 2)
    go_on.set()
    wait_for(lambda: request.triton.closed)

    ((response, flags),) = request.triton.sent
    assert [text.decode() for text in response.tensors["text_output"].values] == ["a0a1a2", "b0b1b2"]
    assert flags == 1


@pytest.mark.parametrize(
    ("distance_s", "long_s", "cost_s"), [(1.0, 60.0, 0.0), (60.0, 2.0, 0.0), (60.0, 0.1, 1.0)], ids=str
)
def test_pieces_keep_a_distance_that_grows_with_the_streams(
    responses: Any, monkeypatch: pytest.MonkeyPatch, distance_s: float, long_s: float, cost_s: float
) -> None:
    module = sys.modules["triton_vllm.responses"]
    for name, value in {"DISTANCE_S": distance_s, "LONG_S": long_s, "PIECE_COST_S": cost_s}.items():
        monkeypatch.setattr(module, name, value)
    first, second, begin = ARequest(), ARequest(), time.monotonic()
    for request in (first, second):  # two streams, 2 s from piece to piece
        responses.chunk(request, lambda: ["a"], final=False)
        wait_for(lambda request=request: request.triton.sent)
    both_began = time.monotonic()

    responses.chunk(first, lambda: ["b"], final=False)
    responses.chunk(first, lambda: ["c"], final=False)
    responses.chunk(second, lambda: ["z"], final=True)
    wait_for(lambda: second.triton.closed)
    last_after_s = time.monotonic() - both_began
    wait_for(lambda: len(first.triton.sent) == 2)

    assert last_after_s < 1.8, "the last piece waits for nothing"
    assert time.monotonic() - begin >= 2.0
    assert [response.text("text_output") for response, _ in first.triton.sent] == ["a", "bc"]


def test_last_piece_takes_along_what_keeps_its_distance(responses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["triton_vllm.responses"], "PIECE_COST_S", 1.0)
    request = ARequest()
    responses.chunk(request, lambda: ["a"], final=False)
    wait_for(lambda: request.triton.sent)

    responses.chunk(request, lambda: ["b"], final=False)
    time.sleep(0.01)
    responses.chunk(request, lambda: ["c"], final=True)
    wait_for(lambda: request.triton.closed)
    time.sleep(1.1)  # the turn that "b" would have had

    assert [response.text("text_output") for response, _ in request.triton.sent] == ["a", "bc"]


def test_piece_without_text_is_not_sent_but_the_last_one_is(responses: Any) -> None:
    request = ARequest()

    responses.chunk(request, lambda: [""], final=False)
    responses.chunk(ARequest(), lambda: ["b"], final=True)
    responses.chunk(request, lambda: [""], final=True)
    wait_for(lambda: request.triton.closed)

    assert [(response.text("text_output"), flags) for response, flags in request.triton.sent] == [("", 1)]


def test_sender_is_let_go_with_the_last_response_whoever_still_holds_the_job(responses: Any) -> None:
    request = ARequest()
    sent, there = request.triton.sent, weakref.ref(request.triton)
    responses.watch(request, lambda: None)

    responses.chunk(request, lambda: ["a"], final=True)
    wait_for(lambda: sent)
    del request.triton

    wait_for(lambda: there() is None)  # Triton keeps the request as long as its sender lives


def test_error_is_the_one_and_last_response(responses: Any) -> None:
    request = ARequest()

    responses.error(request, "no", "invalid")
    responses.error(request, "again", "invalid")
    responses.chunk(request, lambda: ["late"], final=False)
    wait_for(lambda: request.triton.closed)
    responses.stop()

    assert [(response.error.message, flags) for response, flags in request.triton.sent] == [("no", 1)]


def test_error_names_no_path_of_this_machine_but_keeps_a_link(responses: Any) -> None:
    request = ARequest()

    responses.error(request, "no '/root/.cache/a.json', see https://vllm.ai/docs/x or 1/2", "internal")
    wait_for(lambda: request.triton.closed)

    assert request.triton.sent[0][0].error.message == "no '(a path)', see https://vllm.ai/docs/x or 1/2"


def test_text_that_cannot_be_made_becomes_an_error_of_that_job(responses: Any) -> None:
    broken, good = ARequest(), ARequest()

    responses.chunk(broken, lambda: 1 / 0, final=True)  # type: ignore[arg-type, return-value]
    responses.chunk(good, lambda: ["fine"], final=True)
    wait_for(lambda: good.triton.closed)

    assert "could not be turned into text" in broken.triton.sent[0][0].error.message
    assert good.triton.sent[0][0].text("text_output") == "fine"


def test_cancelled_job_is_cancelled_once(responses: Any) -> None:
    request, calls = ARequest(), list[None]()
    responses.watch(request, lambda: calls.append(None))

    request.triton.cancelled = True
    wait_for(lambda: calls)
    time.sleep(POLLS * 0.01)

    assert len(calls) == 1


def test_finished_job_is_not_asked_again(responses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ARequest()
    asked = SimpleNamespace(late=False)

    def is_cancelled() -> bool:
        asked.late = asked.late or request.triton.closed
        return False

    monkeypatch.setattr(request.triton, "is_cancelled", is_cancelled)
    responses.watch(request, lambda: None)
    responses.chunk(request, lambda: ["a"], final=True)
    wait_for(lambda: request.triton.closed)
    time.sleep(POLLS * 0.01)

    assert not asked.late
