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


def wait_s(since: Sequence[float], running: int, now: float, *, step_cost_s: float, longest_s: float) -> float:
    """Return for how many more seconds it pays to let a group wait; 0 or less: it is time.

    Args:
        since: When each of the group came, the first one first.
        running: How many requests the engine is working on.
        now: The time, of the same clock.
        step_cost_s: How much longer a step takes with new prompts in it, in seconds.
        longest_s: How long a request waits at most, in seconds.
    """
    waited_s = sum(now - moment for moment in since)
    pays_s = (running * step_cost_s - waited_s) / len(since)
    return min(pays_s, since[-1] + QUIET_S - now, since[0] + longest_s - now)


class AdmissionController(Generic[Item]):
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

    def submit(self, items: Sequence[Item]) -> None:
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
        left_s = wait_s(
            self._since, self._running(), time.monotonic(), step_cost_s=self._step_cost_s, longest_s=self._longest_s
        )
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self.flush)
        else:
            self.flush()

    def flush(self) -> None:
        """Let in all that wait."""
        group, self._waiting, self._since = self._waiting, [], []
        if group:
            self._admit(group)
