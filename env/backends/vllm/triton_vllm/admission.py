# SPDX-License-Identifier: Apache-2.0
"""When new requests join those that the engine is working on: in groups, where that is quicker for all.

On a GPU vLLM replays a step that only continues answers as one CUDA graph. A step with a new prompt in it is launched
piece by piece instead, which takes milliseconds longer, and every running request waits for it. With many clients,
whose answers differ in length, nearly every step would have a new prompt. So a new request waits a little for others,
and they share one such step.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

# Answers that end in the same step bring their clients' next requests within milliseconds, and then none for long.
QUIET_S = 0.02


class Admission(Generic[Item]):
    """Holds new requests back for as long as that costs them less than it saves the running ones.

    A group is let in when the waiting of all in it adds up to what its step costs all running requests together: with
    none running at once, with few after a moment; and when no other has come for a while. All of it happens on one
    asyncio loop.
    """

    def __init__(
        self, admit: Callable[[list[Item]], None], running: Callable[[], int], *, step_cost_s: float, longest_s: float
    ) -> None:
        """Hold nothing yet.

        Args:
            admit: Called with each group.
            running: Says how many requests the engine is working on.
            step_cost_s: How much longer a step takes with new prompts in it, in seconds; 0 lets all in at once.
            longest_s: How long a request waits at most, in seconds.
        """
        self._admit, self._running = admit, running
        self._step_cost_s, self._longest_s = step_cost_s, longest_s
        self._waiting: list[Item] = []
        self._since: list[float] = []
        self._timer: asyncio.TimerHandle | None = None

    def arrive(self, items: Sequence[Item]) -> None:
        """Take new requests."""
        now = time.monotonic()
        self._waiting += items
        self._since += [now] * len(items)
        self.decide()

    def decide(self) -> None:
        """Let the group in if it is time, else look again when it is; also called when a request has ended."""
        if not self._waiting:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left_s = self._left_s(time.monotonic())
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self.let_in)
        else:
            self.let_in()

    def let_in(self) -> None:
        """Let all in that wait."""
        group, self._waiting, self._since = self._waiting, [], []
        if group:
            self._admit(group)

    def _left_s(self, now: float) -> float:
        """Return for how many seconds waiting still pays."""
        waited_s = sum(now - since for since in self._since)
        pays_s = (self._running() * self._step_cost_s - waited_s) / len(self._since)
        return min(pays_s, self._since[-1] + QUIET_S - now, self._since[0] + self._longest_s - now)
