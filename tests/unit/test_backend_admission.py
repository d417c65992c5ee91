# SPDX-License-Identifier: Apache-2.0
"""Admission: new requests wait for others only where that costs them less than it saves the running ones."""

import asyncio
import heapq
import importlib
import random
from collections.abc import Callable, Coroutine
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit import backend_support

STEP_COST_S, LONGEST_S = 0.01, 0.2
SLACK_S = 0.1


class FakeClockLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only when nothing is left to do: the same on a busy machine."""

    now_s = 0.0

    def time(self) -> float:
        """Return the time of this loop's own clock."""
        return self.now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now_s = max(self.now_s, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def now() -> float:
    return asyncio.get_running_loop().time()


def run_on_fake_clock(course: Coroutine[Any, Any, "Let"]) -> "Let":
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        return runner.run(course)


@pytest.fixture
def admission(monkeypatch: pytest.MonkeyPatch) -> Any:
    backend_support.install(monkeypatch)
    module = importlib.import_module("triton_vllm.admission")
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=now))
    return module


class Let:
    """Remembers which groups were let in, and when."""

    def __init__(self, module: Any, running: Callable[[], int], *, step_cost_s: float = STEP_COST_S) -> None:
        self.groups: list[list[str]] = []
        self.begin = now()
        self.after_s: list[float] = []
        self.gate = module.AdmissionController(self.admit, running, step_cost_s=step_cost_s, longest_s=LONGEST_S)

    def admit(self, group: list[str]) -> None:
        self.groups.append(group)
        self.after_s.append(now() - self.begin)


def test_idle_engine_is_given_a_request_at_once(admission: Any) -> None:
    async def run() -> Let:
        let = Let(admission, lambda: 0)
        let.gate.submit(["a"])
        return let

    assert run_on_fake_clock(run()).groups == [["a"]]


def test_without_a_cost_of_a_step_nothing_waits(admission: Any) -> None:
    async def run() -> Let:
        let = Let(admission, lambda: 100, step_cost_s=0.0)
        let.gate.submit(["a"])
        let.gate.submit(["b"])
        return let

    assert run_on_fake_clock(run()).groups == [["a"], ["b"]]


async def two_arrivals(module: Any, *, running: int, apart_s: float, then_s: float) -> Let:
    """Let two requests come, the first still waiting when the second does, and look a while later."""
    let = Let(module, lambda: running)
    let.gate.submit(["a"])
    await asyncio.sleep(apart_s)
    let.gate.submit(["b"])
    assert not let.groups
    await asyncio.sleep(then_s + SLACK_S)
    return let


def test_requests_that_come_while_others_wait_share_their_step(admission: Any) -> None:
    """Two running times 10 ms: one request waits 20 ms, a second one that joins halfway makes it 15 ms."""

    let = run_on_fake_clock(two_arrivals(admission, running=2, apart_s=0.01, then_s=0.005))
    assert let.groups == [["a", "b"]]
    assert let.after_s[0] >= 0.015 - 0.002


def test_nothing_waits_for_others_when_none_have_come_for_a_while(admission: Any) -> None:
    let = run_on_fake_clock(two_arrivals(admission, running=1000, apart_s=0.015, then_s=0.02))
    assert let.groups == [["a", "b"]]
    assert let.after_s[0] >= 0.035 - 0.002


def test_nothing_waits_longer_than_the_longest(admission: Any) -> None:
    async def run() -> Let:
        let = Let(admission, lambda: 1000)
        while not let.groups and now() < let.begin + LONGEST_S + SLACK_S:
            let.gate.submit(["a"])
            await asyncio.sleep(0.005)
        return let

    let = run_on_fake_clock(run())
    assert len(let.groups[0]) > 1
    assert let.after_s[0] >= LONGEST_S - 0.002


def test_engine_that_falls_idle_is_given_what_waits(admission: Any) -> None:
    async def run() -> Let:
        running = [1000]
        let = Let(admission, lambda: running[0])
        let.gate.submit(["a"])
        running[0] = 0
        let.gate.decide()
        return let

    assert run_on_fake_clock(run()).groups == [["a"]]


Wait = Callable[[list[float], int, float], float]


def simulated_tokens_per_ms(clients: int, lengths: Callable[[], int], wait: Wait) -> float:
    """The speed of an engine whose clients ask again when they are answered; times in ms, steps as measured on an H100.

    A step takes 1.8 ms and 0.0105 for each request in it; one with new prompts 6 ms more, and 0.24 for each of them.
    Answers go out one after the other, 0.15 ms each, and the next question is there 3 ms later.
    """
    draw, now, out_at, done = random.Random(1), 0.0, 0.0, 0
    asked, running = [clients], dict[int, int]()
    coming = [(3 + 0.15 * number, number) for number in range(clients)]
    waiting, since, admitted = list[int](), list[float](), list[int]()
    step_ends, answers = float("inf"), 8 * clients
    while done < answers:
        due = now + max(0.0, wait(since, len(running) + len(admitted), now)) if waiting else float("inf")
        now, event = min((coming[0][0] if coming else float("inf"), "come"), (due, "admit"), (step_ends, "step"))
        if event == "come":
            waiting.append(heapq.heappop(coming)[1])
            since.append(now)
        elif event == "admit":
            admitted, waiting, since = admitted + waiting, [], []
        else:
            running = {number: left - 1 for number, left in running.items()}
            for number in [number for number, left in running.items() if not left]:
                del running[number]
                done, out_at = done + 1, max(out_at, now) + 0.15
                if asked[0] < answers:
                    asked[0] += 1
                    heapq.heappush(coming, (out_at + 3 + draw.expovariate(1), number))
            step_ends = float("inf")
        if step_ends == float("inf") and (running or admitted):
            step_ends = (
                now + 1.8 + 0.0105 * (len(running) + len(admitted)) + (6 + 0.24 * len(admitted)) * bool(admitted)
            )
            running |= {number: lengths() for number in admitted}
            admitted = []
    return answers * 128 / now


@pytest.mark.parametrize(("clients", "gain"), [(16, 0.97), (64, 1.2), (256, 1.3)])
def test_groups_are_quicker_where_answers_differ_in_length_as_simulated(
    admission: Any, clients: int, gain: float
) -> None:
    at_once, groups = both_ways(admission, clients, partial(random.Random(2).randint, 32, 224))

    print(f"{clients} clients: {at_once * 1000:.0f} tokens/s one by one, {groups * 1000:.0f} in groups")
    assert groups > gain * at_once


@pytest.mark.parametrize("clients", [1, 16, 64, 256])
def test_groups_cost_next_to_nothing_where_answers_have_one_length_as_simulated(admission: Any, clients: int) -> None:
    at_once, groups = both_ways(admission, clients, lambda: 128)

    print(f"{clients} clients: {at_once * 1000:.0f} tokens/s one by one, {groups * 1000:.0f} in groups")
    assert groups > 0.94 * at_once


def both_ways(admission: Any, clients: int, lengths: Callable[[], int]) -> tuple[float, float]:
    """The simulated speed with every request let in at once, and with the backend's own rule."""

    def rule(since: list[float], running: int, now: float) -> float:
        seconds = [moment / 1000 for moment in since]
        return float(1000 * admission.wait_s(seconds, running, now / 1000, step_cost_s=0.006, longest_s=0.1))

    return (
        simulated_tokens_per_ms(clients, lengths, lambda _since, _running, _now: 0.0),
        simulated_tokens_per_ms(clients, lengths, rule),
    )
