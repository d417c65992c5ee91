# SPDX-License-Identifier: Apache-2.0
"""What the lesson about retrieval needs besides its cells: a client that counts, and the load of several of them."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from IPython.display import Markdown
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ensemblekit.clients.grpc import Served, stream_responses
from ensemblekit.errors import RequestError
from ensemblekit.lesson.show import table

__all__ = ["CountingClient", "Way", "WayResult", "answer_once", "measure_ways", "ways_table"]

SINGLE = ("embed", "retrieve", "prompt", "preprocess", "postprocess")  # one response each; the others need a stream
LENGTH_BYTES = 4  # that Triton puts before each text of a tensor
Tensors = dict[str, np.ndarray[Any, Any]]


class CountingClient:
    """Asks models over gRPC, and counts the round trips and the bytes of tensors that it sends and gets."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        """Start to count."""
        self.client, self.round_trips, self.moved_bytes = client, 0, 0

    async def __call__(self, model: str, **values: Any) -> Tensors:
        """Ask a model for one whole answer: texts and arrays by the name of the input, arrays by that of the output.

        Raises:
            RequestError: The server refused.
        """
        given = {name: _array(value) for name, value in values.items()}
        inputs = [
            triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)) for name, array in given.items()
        ]
        for tensor, array in zip(inputs, given.values(), strict=True):
            tensor.set_data_from_numpy(array)
        try:
            found = await self._infer(model, inputs)
        except InferenceServerException as error:
            hint = "correct the request as it says"
            raise RequestError(f"ask {model}", found=error.message(), hint=hint) from error
        self.round_trips += 1
        self.moved_bytes += sum(map(_size, [*given.values(), *found.values()]))
        return found

    async def _infer(self, model: str, inputs: list[triton.InferInput]) -> Tensors:
        if model in SINGLE:  # faster than a stream of one response
            return _tensors(await self.client.infer(model, inputs))
        found: Tensors = {}
        async for response in stream_responses(self.client, model, inputs):
            if response.error_message:
                raise InferenceServerException(response.error_message)
            found |= _tensors(triton.InferResult(response.infer_response))
        return found


def _tensors(result: triton.InferResult) -> Tensors:
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def _array(value: Any) -> np.ndarray[Any, Any]:
    return np.array([value.encode()], dtype=np.object_) if isinstance(value, str) else np.asarray(value)


def _size(array: np.ndarray[Any, Any]) -> int:
    if array.dtype != np.object_:
        return array.nbytes
    return sum(LENGTH_BYTES + len(value) for value in array.reshape(-1))


Way = Callable[[CountingClient, str], Awaitable[Tensors]]  # from a question to its answer


@dataclass(frozen=True)
class WayResult:
    """What one way to an answer took.

    Attributes:
        round_trips: Requests of the client for one answer.
        moved_bytes: Of tensors that the client sent and got for one answer, the mean.
        answers_per_s: By clients at once, the median of the rounds.
    """

    round_trips: float
    moved_bytes: float
    answers_per_s: dict[int, float]


async def answer_once(server: Served, way: Way, question: str) -> dict[str, list[str]]:
    """Return the texts of an answer, by output.

    Raises:
        RequestError: The server refused.
    """
    async with triton.InferenceServerClient(server.grpc_url) as client:
        found = await way(CountingClient(client), question)
    return {name: [value.decode(errors="replace") for value in found[name]] for name in sorted(found)}


async def measure_ways(
    server: Served, ways: Mapping[str, Way], questions: list[str], *, clients: int, rounds: int
) -> dict[str, WayResult]:
    """Measure every way in turn, with one client and with several, each of which asks all the questions.

    Args:
        server: A running server.
        ways: The ways, by name.
        questions: What each client asks, one after the other.
        clients: Most clients at once.
        rounds: How often each way is measured, after a warm-up.

    Raises:
        RequestError: The server refused.
    """
    speeds: dict[tuple[str, int], list[float]] = {}
    counters = dict[str, CountingClient]()
    async with triton.InferenceServerClient(server.grpc_url) as client:
        for number in range(rounds + 1):
            for count in dict.fromkeys((1, clients)):
                for name, way in ways.items():
                    counter = counters[name] = CountingClient(client)
                    begin = time.perf_counter()
                    await asyncio.gather(*(_ask_all(way, counter, questions) for _ in range(count)))
                    if number:  # the first is the warm-up
                        speed = count * len(questions) / (time.perf_counter() - begin)
                        speeds.setdefault((name, count), []).append(speed)
    asked = clients * len(questions)
    return {
        name: WayResult(
            counter.round_trips / asked,
            counter.moved_bytes / asked,
            {count: statistics.median(speeds[name, count]) for count in dict.fromkeys((1, clients))},
        )
        for name, counter in counters.items()
    }


async def _ask_all(way: Way, client: CountingClient, questions: list[str]) -> None:
    for question in questions:
        await way(client, question)


def ways_table(results: Mapping[str, WayResult]) -> Markdown:
    """Return what was measured as a table."""
    counts = next(iter(results.values())).answers_per_s
    rows = [
        (
            name,
            f"{result.round_trips:.0f}",
            f"{result.moved_bytes:.0f}",
            *(f"{speed:.0f}" if speed >= 10 else f"{speed:.1f}" for speed in result.answers_per_s.values()),
        )
        for name, result in results.items()
    ]
    speeds = [f"answers/s, {count} client{'s' if count > 1 else ''}" for count in counts]
    return table(rows, ("way", "round trips", "bytes", *speeds))
