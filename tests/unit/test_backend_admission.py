# SPDX-License-Identifier: Apache-2.0
"""Admission: new requests wait for others only where that costs them less than it saves the running ones."""

import asyncio
import importlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit import backend_support

STEP_COST_S, LONGEST_S = 0.01, 0.2
SLACK_S = 0.1  # of a busy machine


@pytest.fixture
def admission(monkeypatch: pytest.MonkeyPatch) -> Any:
    backend_support.install(monkeypatch)
    return importlib.import_module("triton_vllm.admission")


class Let:
    """Remembers which groups were let in, and when."""

    def __init__(self, module: Any, running: Callable[[], int], *, step_cost_s: float = STEP_COST_S) -> None:
        self.groups: list[list[str]] = []
        self.begin = time.monotonic()
        self.after_s: list[float] = []
        self.gate = module.Admission(self.admit, running, step_cost_s=step_cost_s, longest_s=LONGEST_S)

    def admit(self, group: list[str]) -> None:
        self.groups.append(group)
        self.after_s.append(time.monotonic() - self.begin)


def test_idle_engine_is_given_a_request_at_once(admission: Any) -> None:
    async def run() -> Let:
        let = Let(admission, lambda: 0)
        let.gate.arrive(["a"])
        return let

    assert asyncio.run(run()).groups == [["a"]]


def test_without_a_cost_of_a_step_nothing_waits(admission: Any) -> None:
    async def run() -> Let:
        let = Let(admission, lambda: 100, step_cost_s=0.0)
        let.gate.arrive(["a"])
        let.gate.arrive(["b"])
        return let

    assert asyncio.run(run()).groups == [["a"], ["b"]]


def test_requests_that_come_while_others_wait_share_their_step(admission: Any) -> None:
    """Two running times 10 ms: one request waits 20 ms, a second one that joins halfway makes it 15 ms."""

    async def run() -> Let:
        let = Let(admission, lambda: 2)
        let.gate.arrive(["a"])
        await asyncio.sleep(0.01)
        let.gate.arrive(["b"])
        assert not let.groups
        await asyncio.sleep(0.005 + SLACK_S)
        return let

    let = asyncio.run(run())
    assert let.groups == [["a", "b"]]
    assert let.after_s[0] >= 0.015 - 0.002


def test_nothing_waits_for_others_when_none_have_come_for_a_while(admission: Any) -> None:
    async def run() -> Let:
        let = Let(admission, lambda: 1000)
        let.gate.arrive(["a"])
        await asyncio.sleep(0.015)
        let.gate.arrive(["b"])
        assert not let.groups
        await asyncio.sleep(0.02 + SLACK_S)
        return let

    let = asyncio.run(run())
    assert let.groups == [["a", "b"]]
    assert let.after_s[0] >= 0.035 - 0.002


def test_nothing_waits_longer_than_the_longest(admission: Any) -> None:
    async def run() -> Let:
        let = Let(admission, lambda: 1000)
        while not let.groups and time.monotonic() < let.begin + LONGEST_S + SLACK_S:
            let.gate.arrive(["a"])
            await asyncio.sleep(0.005)
        return let

    let = asyncio.run(run())
    assert len(let.groups[0]) > 1
    assert let.after_s[0] >= LONGEST_S - 0.002


def test_engine_that_falls_idle_is_given_what_waits(admission: Any) -> None:
    async def run() -> Let:
        running = [1000]
        let = Let(admission, lambda: running[0])
        let.gate.arrive(["a"])
        running[0] = 0
        let.gate.decide()
        return let

    assert asyncio.run(run()).groups == [["a"]]
