# SPDX-License-Identifier: Apache-2.0
"""A buffered answer: every token's text is taken once, and the token that ended the answer never."""

import importlib
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit import backend_support

TOKENS = 5000


class Numbers:
    """Stands in for the text of an answer: the tokens themselves."""

    def __init__(self) -> None:
        self.ended = False

    def add(self, ids: list[int], *, last: bool) -> str:
        assert not (self.ended and ids), "tokens after the last"
        self.ended = last
        return "".join(f"{number} " for number in ids)


@pytest.fixture
def output_buffer(monkeypatch: pytest.MonkeyPatch) -> Any:
    backend_support.install(monkeypatch)
    return importlib.import_module("triton_vllm.output_buffer").OutputBuffer


def test_stream_is_offered_once_until_it_is_taken(output_buffer: Any) -> None:
    answer = output_buffer(SimpleNamespace(stream=True, additional=None), Numbers(), None)

    assert [answer.append([1], None), answer.append([2], None)] == [True, False]
    assert answer.drain(last=False) == "1 2 "
    assert answer.append([3], None)


def test_whole_answer_is_offered_at_its_end_without_the_token_that_ended_it(output_buffer: Any) -> None:
    answer = output_buffer(SimpleNamespace(stream=False, additional=None), Numbers(), None)

    assert [answer.append([1], None), answer.append([2, 0], "stop")] == [False, True]
    assert answer.drain(last=True) == "1 2 "


def test_answer_that_ended_at_its_limit_keeps_its_last_token(output_buffer: Any) -> None:
    answer = output_buffer(SimpleNamespace(stream=True, additional=None), Numbers(), None)

    answer.append([1], None)
    answer.append([2], "length")

    assert answer.drain(last=True) == "1 2 "


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_token_that_ended_the_answer_and_the_reason_are_told_once_at_the_end(output_buffer: Any, reason: str) -> None:
    told: list[tuple[int, str | None]] = []
    additional = SimpleNamespace(count=lambda tokens, reason: told.append((tokens, reason)))
    answer = output_buffer(SimpleNamespace(stream=True, additional=additional), Numbers(), None)

    answer.append([1], None)
    answer.drain(last=False)
    answer.append([2], None)
    answer.append([3], reason)
    answer.drain(last=False)  # the turn of a piece comes after the end
    answer.drain(last=True)

    assert (
        told == {"stop": [(1, None), (1, None), (1, "stop")], "length": [(1, None), (2, None), (0, "length")]}[reason]
    )


def test_taken_by_another_thread_while_it_grows_no_token_is_lost_or_doubled(output_buffer: Any) -> None:
    answer = output_buffer(SimpleNamespace(stream=True, additional=None), Numbers(), None)
    taken: list[str] = []

    def take() -> None:
        while answer.finish_reason is None:
            taken.append(answer.drain(last=False))
        taken.append(answer.drain(last=True))

    taker = threading.Thread(target=take)
    taker.start()
    for number in range(TOKENS):
        answer.append([number], None)
    answer.append([0], "stop")
    taker.join()

    assert "".join(taken) == "".join(f"{number} " for number in range(TOKENS))
