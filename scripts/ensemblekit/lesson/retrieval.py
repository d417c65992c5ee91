# SPDX-License-Identifier: Apache-2.0
"""What the lesson about retrieval needs besides its cells: a client that counts, and the load of several of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx

from ensemblekit.clients.grpc import REQUEST_TIMEOUT_S, Served, key_headers
from ensemblekit.errors import RequestError

__all__ = ["CountingClient", "WayResult", "measure_ways"]

DECOUPLED = ("llm", "retrieval", "retrieval_bls")
DATATYPES = {str: "BYTES", float: "FP32", bool: "BOOL"}


class CountingClient(httpx.Client):
    """Asks models over HTTP, one request after the other, and counts the requests and the bytes of their bodies."""

    def __init__(self, server: Served, *, away_ms: float = 0.0) -> None:
        """Take nothing for sent yet; before each request, wait as long as a way of `away_ms` there and back takes."""
        address = f"http://{server.http_url}/v2/models/"
        super().__init__(base_url=address, headers=key_headers(server), timeout=REQUEST_TIMEOUT_S, trust_env=False)
        self.away_s = away_ms / 1000
        self.round_trips = 0
        self.moved_bytes = 0

    def __call__(self, model: str, **inputs: Any) -> dict[str, Any]:
        """Return a model's outputs by name; those of a decoupled one, which infer refuses, as generate gives them.

        Raises:
            RequestError: The server refused.
        """
        time.sleep(self.away_s)
        decoupled = model in DECOUPLED
        tensors = {"inputs": [_tensor(name, value) for name, value in inputs.items()]}
        reply = self.post(f"{model}/{'generate' if decoupled else 'infer'}", json=inputs if decoupled else tensors)
        content: dict[str, Any] = reply.json()
        if "error" in content:
            raise RequestError(f"ask {model}", found=content["error"], hint="correct the request as it says")
        self.round_trips += 1
        self.moved_bytes += len(reply.request.content) + len(reply.content)
        return content if decoupled else {output["name"]: output["data"] for output in content["outputs"]}


def _tensor(name: str, value: Any) -> dict[str, Any]:
    values = value if isinstance(value, list) else [value]
    return {"name": name, "shape": [len(values)], "datatype": DATATYPES[type(values[0])], "data": values}


Way = Callable[[CountingClient, str], Any]  # from a question to its answer


@dataclass(frozen=True)
class WayResult:
    """What one way to an answer took: the median of the rounds; `answers_per_s` of all clients together."""

    round_trips: float
    moved_bytes: float
    answers_per_s: float

    @property
    def answer_ms(self) -> float:
        """Milliseconds for an answer, where one client asked."""
        return 1000 / self.answers_per_s


def measure_ways(
    server: Served,
    ways: Mapping[str, Way],
    questions: Sequence[str],
    *,
    clients: int = 1,
    rounds: int = 3,
    away_ms: float = 0.0,
) -> dict[str, WayResult]:
    """Measure the ways in turn, round by round after a warm-up.

    Args:
        server: A running server.
        ways: The ways, by name.
        questions: What each client asks, one after the other.
        clients: How many ask at once.
        rounds: How often each way is measured.
        away_ms: How long a message between client and server is on its way, there and back; a sleep stands for it.

    Raises:
        RequestError: The server refused.
    """
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    counted = dict[str, tuple[float, float]]()
    answers = clients * len(questions)
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(clients))
        asking = [stack.enter_context(CountingClient(server, away_ms=away_ms)) for _ in range(clients)]
        for _ in range(rounds + 1):
            for name, way in ways.items():
                for client in asking:
                    client.round_trips = client.moved_bytes = 0
                begin = time.perf_counter()
                list(threads.map(lambda client, way=way: [way(client, question) for question in questions], asking))
                speeds[name].append(answers / (time.perf_counter() - begin))
                sums = (sum(each.round_trips for each in asking), sum(each.moved_bytes for each in asking))
                counted[name] = (sums[0] / answers, sums[1] / answers)
    return {name: WayResult(*counted[name], statistics.median(speeds[name][1:])) for name in ways}
