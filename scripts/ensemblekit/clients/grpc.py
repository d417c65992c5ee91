# SPDX-License-Identifier: Apache-2.0
"""Questions over gRPC streaming, with tritonclient, the normal way to a decoupled model; and Triton's own statistics.

A decoupled model may send any number of responses to one request, so each request is a stream; Triton marks
the last response (`triton_final_response`).
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, Queue
from threading import Thread
from typing import Any, Protocol

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc.aio import AioRpcError
from tritonclient.grpc._utils import _get_inference_request
from tritonclient.utils import InferenceServerException

from ensemblekit.errors import RequestError

__all__ = [
    "Answer",
    "ModelStatistics",
    "Served",
    "ask",
    "ask_many",
    "ended",
    "model_statistics",
    "request_inputs",
    "stream",
    "stream_results",
    "time_by_step",
]

REQUEST_TIMEOUT_S = 120.0  # a long answer on two cores
CLOSE_TIMEOUT_S = 5.0  # an ended stream closes in milliseconds
ENSEMBLE = "ensemble"
# which tensor takes the text: the ensemble a question, the composing models what is said in their configs
TEXT_INPUT = {"ensemble": "chat_input", "bls": "chat_input", "preprocess": "chat_input"}
DEFAULT_TEXT_INPUT = "text_input"
NANOSECONDS = 1e9


class Served(Protocol):
    """Anything with the addresses of a running server."""

    @property
    def http_url(self) -> str:
        """`host:port` of the HTTP endpoint."""

    @property
    def grpc_url(self) -> str:
        """`host:port` of the gRPC endpoint."""

    @property
    def metrics_url(self) -> str:
        """`host:port` of the metrics endpoint."""


def key_headers(server: Served) -> dict[str, str]:
    """Return what a request must carry where the server has a gate that wants a key, as a workshop's has."""
    headers: dict[str, str] = getattr(server, "key_headers", {})
    return headers


class Controlled(Served, Protocol):
    """A running server whose models can be loaded and listed, by those who have its key."""

    @property
    def control_headers(self) -> dict[str, str]:
        """The HTTP headers that hold the key."""


@dataclass(frozen=True)
class Answer:
    """A whole answer and when its pieces came.

    Attributes:
        question: What was asked.
        pieces: The text of each response, in order.
        times_s: Seconds from the request to each piece.
    """

    question: str
    pieces: tuple[str, ...]
    times_s: tuple[float, ...] = field(repr=False)

    @property
    def text(self) -> str:
        """The pieces joined."""
        return "".join(self.pieces)

    @property
    def first_token_s(self) -> float:
        """Seconds to the first piece."""
        return self.times_s[0]

    @property
    def elapsed_s(self) -> float:
        """Seconds to the last piece."""
        return self.times_s[-1]

    def __str__(self) -> str:
        return self.text


def request_inputs(
    text: str,
    *,
    model: str = ENSEMBLE,
    sampling_parameters: Mapping[str, Any] | None = None,
    stream: bool = False,
) -> list[triton.InferInput]:
    """Return the tensors of one request.

    Args:
        text: The question (ensemble, preprocess) or the prompt (llm).
        model: The model that is asked.
        sampling_parameters: vLLM's sampling parameters, sent as one JSON string.
        stream: Whether each new piece of text is a response of its own.

    Raises:
        TypeError: The sampling parameters cannot be written as JSON.
    """
    body = request_body(text, model=model, sampling_parameters=sampling_parameters, stream=stream)
    return [input_tensor(name, value) for name, value in body.items()]


def request_body(
    text: str,
    *,
    model: str = ENSEMBLE,
    sampling_parameters: Mapping[str, Any] | None = None,
    stream: bool = False,
) -> dict[str, str | bool]:
    """Return the inputs of one request by name: the body of a generate request, or the values of the tensors.

    >>> request_body("Hi", sampling_parameters={"max_tokens": 5})
    {'chat_input': 'Hi', 'stream': False, 'sampling_parameters': '{"max_tokens": 5}'}
    """
    body: dict[str, str | bool] = {TEXT_INPUT.get(model, DEFAULT_TEXT_INPUT): text, "stream": stream}
    if sampling_parameters is not None:
        body["sampling_parameters"] = json.dumps(sampling_parameters)
    if model not in TEXT_INPUT:
        body["exclude_input_in_output"] = True
    return body


def input_tensor(name: str, value: str | bool) -> triton.InferInput:
    """Return an input of one element, a text or a truth."""
    datatype, dtype = ("BOOL", np.bool_) if isinstance(value, bool) else ("BYTES", np.object_)
    tensor = triton.InferInput(name, [1], datatype)
    tensor.set_data_from_numpy(np.array([value if isinstance(value, bool) else value.encode()], dtype=dtype))
    return tensor


def stream(
    server: Served,
    text: str,
    *,
    model: str = ENSEMBLE,
    sampling_parameters: Mapping[str, Any] | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Iterator[str]:
    """Yield the pieces of an answer as they come; leaving the loop early cancels the request in the server.

    Through an ensemble, the step under way runs on: the ensemble scheduler looks at cancellation between
    steps only (triton-inference-server/server#6739). Asked directly, the model is told at once.

    Raises:
        RequestError: The server refused, failed, or sent nothing for `timeout_s` seconds.
    """
    inputs = request_inputs(text, model=model, sampling_parameters=sampling_parameters, stream=True)
    yield from _responses(server, model, inputs, timeout_s)


def ask(
    server: Served,
    text: str,
    *,
    model: str = ENSEMBLE,
    sampling_parameters: Mapping[str, Any] | None = None,
    streaming: bool = False,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Answer:
    """Return the answer to one question.

    Args:
        server: A running server.
        text: The question; for `model="llm"` the whole prompt.
        model: `ensemble`, or a composing model.
        sampling_parameters: vLLM's sampling parameters, for example `{"max_tokens": 20, "temperature": 0}`.
        streaming: Whether the answer comes piece by piece.
        timeout_s: Seconds without any response after which it is given up.

    Raises:
        RequestError: The server refused, failed, or sent nothing in time.
    """
    inputs = request_inputs(text, model=model, sampling_parameters=sampling_parameters, stream=streaming)
    begin, pieces, times = time.perf_counter(), [], []
    for piece in _responses(server, model, inputs, timeout_s):
        pieces.append(piece)
        times.append(time.perf_counter() - begin)
    return Answer(text, tuple(pieces), tuple(times) or (time.perf_counter() - begin,))


def _responses(server: Served, model: str, inputs: list[triton.InferInput], timeout_s: float) -> Iterator[str]:
    try:
        for result in stream_results(server, model, inputs, timeout_s):
            if (piece := _piece(result)) is not None:
                yield piece
    except TimeoutError:
        raise _no_answer(server, model, timeout_s) from None
    except InferenceServerException as error:
        raise _refused(server, model, error) from error


def stream_results(
    server: Served, model: str, inputs: list[triton.InferInput], timeout_s: float
) -> Iterator[triton.InferResult]:
    """Yield the responses to one request up to the last; leaving the loop early cancels it in the server.

    Raises:
        TimeoutError: None came for `timeout_s` seconds.
        InferenceServerException: The server refused or failed.
    """
    results: Queue[tuple[Any, InferenceServerException | None]] = Queue()
    with triton.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: results.put((result, error)), headers=key_headers(server))
        # a stream that broke says why through the callback
        with contextlib.suppress(InferenceServerException):
            client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        final = False
        try:
            while not final:
                try:
                    result, error = results.get(timeout=timeout_s)
                except Empty:
                    raise TimeoutError from None
                if error:
                    final = True  # an error is a final response; a cancelled stream would keep the request for ever
                    raise error
                final = result.get_response().parameters["triton_final_response"].bool_param
                yield result
        finally:
            _end_stream(client, cancel=not final)


def _end_stream(client: triton.InferenceServerClient, *, cancel: bool) -> None:
    """End a stream; one that the server leaves open after its last response, as Triton now and then does, is cancelled.

    Seen once on 24.07: every model had answered, and the client waited for ever.
    """
    stream = client._stream
    ending = Thread(target=client.stop_stream, kwargs={"cancel_requests": cancel}, daemon=True)
    ending.start()
    ending.join(CLOSE_TIMEOUT_S)
    if ending.is_alive():
        stream._response_iterator.cancel()
        ending.join(CLOSE_TIMEOUT_S)


def _piece(result: triton.InferResult) -> str | None:
    """Return the text of a response, None if it has no output."""
    names = [output.name for output in result.get_response().outputs]
    if not names:
        return None
    values = result.as_numpy("text_output" if "text_output" in names else names[0])
    return "".join(value.decode(errors="replace") for value in values.reshape(-1))


def stream_responses(
    client: triton_aio.InferenceServerClient,
    model: str,
    inputs: list[triton.InferInput],
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Any]:
    """Return the responses to one request as they come, in a stream which ends with an empty final response.

    The asynchronous client ignores `enable_empty_final_response`, and refuses the parameter behind it; without it about
    one stream in 300 never ends.
    """
    request = _get_inference_request(model, inputs, "", "", None, 0, False, False, 0, None, None)
    request.parameters["triton_enable_empty_final_response"].bool_param = True

    async def once() -> AsyncIterator[Any]:
        yield request

    call: AsyncIterator[Any] = client._client_stub.ModelStreamInfer(once(), metadata=tuple((headers or {}).items()))
    return call


async def _ask_one(
    client: triton_aio.InferenceServerClient,
    server: Served,
    text: str,
    model: str,
    inputs: list[triton.InferInput],
) -> Answer:
    begin, pieces, times = time.perf_counter(), [], []
    failed: InferenceServerException | None = None
    # to its end: Triton keeps a request for ever whose client leaves at the last response (its stop then takes 30 s)
    async for response in stream_responses(client, model, inputs, key_headers(server)):
        if response.error_message:
            failed = failed or InferenceServerException(response.error_message)
            continue
        if (piece := _piece(triton.InferResult(response.infer_response))) is not None:
            pieces.append(piece)
            times.append(time.perf_counter() - begin)
    if failed:
        raise _refused(server, model, failed)
    return Answer(text, tuple(pieces), tuple(times) or (time.perf_counter() - begin,))


async def ask_many(
    server: Served,
    texts: Sequence[str],
    *,
    model: str = ENSEMBLE,
    sampling_parameters: Mapping[str, Any] | None = None,
    streaming: bool = False,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> list[Answer]:
    """Return the answers to several questions that are asked at once, in the order of the questions.

    Use it with `await` (in a notebook too); the engine batches the requests that are under way together.

    Raises:
        RequestError: The server refused one of them, or did not answer all within `timeout_s` seconds.
    """
    async with triton_aio.InferenceServerClient(server.grpc_url) as client:
        questions = (
            _ask_one(
                client,
                server,
                text,
                model,
                request_inputs(text, model=model, sampling_parameters=sampling_parameters, stream=streaming),
            )
            for text in texts
        )
        try:
            answers = await asyncio.wait_for(asyncio.gather(*questions, return_exceptions=True), timeout_s)
        except TimeoutError:
            raise _no_answer(server, model, timeout_s) from None
    return [_answer_of(server, model, answer) for answer in answers]


def _answer_of(server: Served, model: str, answer: Answer | BaseException) -> Answer:
    """Return an answer, or raise what came instead of it; only after every stream of its round was read to its end."""
    if isinstance(answer, AioRpcError):
        raise _refused(server, model, InferenceServerException(answer.details())) from answer
    if isinstance(answer, BaseException):
        raise answer
    return answer


def ended(server: Served, model: str) -> RequestError | None:
    """Return the error of a request to a server of which a process died; None if none did."""
    reason = getattr(server, "why_ended", None)  # of a server that this process started
    if not reason:
        return None
    return RequestError(
        f"get an answer from model {model!r}",
        found=f"{reason}: the server cannot answer any more",
        hint="start the server again; what the process printed before its end is in the server's log",
    )


def _refused(server: Served, model: str, error: InferenceServerException) -> RequestError:
    if end := ended(server, model):
        return end
    if "failed to connect" in error.message():
        return RequestError(
            f"reach the server at {server.grpc_url}",
            found=error.message(),
            hint="start a server first; if one ran here, the end of its log says why it ended",
        )
    return RequestError(
        f"get an answer from model {model!r} at {server.grpc_url}",
        found=f"the server says: {error.message()}",
        hint="if the model is unknown, `curl -X POST http://"
        f"{server.http_url}/v2/repository/index` lists what is loaded; otherwise correct the "
        "request as it says",
    )


def _no_answer(server: Served, model: str, timeout_s: float) -> RequestError:
    return RequestError(
        f"get an answer from model {model!r} at {server.grpc_url} within {timeout_s:g} s",
        found="no response; a server can be ready and still hang, "
        "for example with numpy 2 in a Python model up to 24.10",
        hint="read the server's log; raise timeout_s for long answers on a slow machine",
    )


@dataclass(frozen=True)
class ModelStatistics:
    """Sums over the successful requests to one model.

    A decoupled model hands its requests over and answers later: its `total_s` ends with the handing over. Only the
    ensemble's holds the time until the last response.
    """

    requests: int
    total_s: float  # from the server's receiving a request to its release, queue included, in seconds


def model_statistics(server: Served) -> dict[str, ModelStatistics]:
    """Return the statistics of each loaded model since it was loaded, by name.

    Raises:
        RequestError: The server does not answer.
    """
    try:
        with triton.InferenceServerClient(server.grpc_url) as client:
            rows = client.get_inference_statistics(headers=key_headers(server)).model_stats
    except InferenceServerException as error:
        raise RequestError(
            f"read the statistics of the server at {server.grpc_url}",
            found=error.message(),
            hint="start a server first; if one ran here, the end of its log says why it ended",
        ) from error
    return {
        row.name: ModelStatistics(
            requests=row.inference_stats.success.count, total_s=row.inference_stats.success.ns / NANOSECONDS
        )
        for row in sorted(rows, key=lambda row: str(row.name))
    }


def time_by_step(
    before: Mapping[str, ModelStatistics], after: Mapping[str, ModelStatistics], ensemble: str = ENSEMBLE
) -> dict[str, float]:
    """Return where the time of an ensemble's requests between two readings went: mean seconds, by step.

    The last entry is the rest: what no composing model's statistics hold. With a decoupled composing model
    that is the time in which it generated, and the passing of tensors; never below zero: a stand-in that
    generates nothing would come out there, because its step is still counted after the last response.

    Args:
        before: Statistics before the requests.
        after: Statistics after them; nobody else may ask the server meanwhile.
        ensemble: The ensemble that was asked; models that were not are left out.

    Raises:
        ValueError: There was no request to the ensemble between the two.
    """
    requests = after[ensemble].requests - before[ensemble].requests
    if requests < 1:
        raise ValueError(f"no request to {ensemble} between the two readings")
    asked = {name: row for name, row in after.items() if row.requests > before[name].requests}
    mean = {name: (row.total_s - before[name].total_s) / requests for name, row in asked.items()}
    whole = mean.pop(ensemble)
    return mean | {"generating": max(0.0, whole - sum(mean.values()))}
