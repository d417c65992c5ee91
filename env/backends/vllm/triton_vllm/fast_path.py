# SPDX-License-Identifier: Apache-2.0
"""The fast path: answers whose tokens are gathered here, past vLLM's machinery for each of them.

vLLM builds an output object for every token of every request, queues it, and wakes a task for it. An answer whose text
is made here needs none of that, streamed or not: a profile with 256 requests at once showed half of the loop's time
there, and of 256 streams the first pieces waited for most of a second behind it. Here a request goes to the engine core
directly, and its tokens into a buffer, from which the thread that sends takes what there is.

For that it uses parts of vLLM that a later version may change. They are used in this file alone, and `available` says
whether they are as they are needed; if they are not, the backend uses vLLM's public `generate()`.
"""

import asyncio
import importlib
import inspect
import time
from collections.abc import Callable, Coroutine
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from triton_vllm.output_buffer import OutputBuffer

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest, FinishReason
    from vllm.v1.engine.async_llm import AsyncLLM

    from triton_vllm.detokenizer import Detokenizer
    from triton_vllm.request import GenerationRequest

# One request with certain sampling parameters is a pattern for all others with the same; a few kinds are usual.
MOST_PATTERNS = 64

ENGINE, STATS = "vllm.v1.engine", "vllm.v1.metrics.stats"
# What the fast path calls, and with which arguments; a number stands for so many positional ones.
CALLS: dict[str, tuple[int, tuple[str, ...]]] = {
    "_run_output_handler": (0, ()),
    "get_supported_tasks": (0, ()),
    "input_processor.process_inputs": (3, ("supported_tasks", "arrival_time", "lora_request", "priority")),
    "output_processor.process_outputs": (3, ()),
    "output_processor.propagate_error": (1, ()),
    "engine_core.add_request_async": (1, ()),
    "engine_core.abort_requests_async": (1, ()),
}
STATS_CALLS = {"IterationStats.update_from_output": 7, "IterationStats.update_from_finished_request": 6}
REQUEST_FIELDS = ("request_id", "external_req_id", "prompt_token_ids", "arrival_time")


def available(llm: "AsyncLLM") -> str | None:
    """Return why this engine has no fast path: which part of vLLM is missing or has changed; None if it has one."""
    try:
        engine, stats = importlib.import_module(ENGINE), importlib.import_module(STATS)
        for name, (count, keywords) in CALLS.items():
            _require_call(llm, name, count, keywords)
        for name, count in STATS_CALLS.items():
            _require_call(stats, name, count)
        _require_call(stats, "RequestStateStats", 0, ("arrival_time",))
        attrgetter("output_processor.lora_states")(llm)
        attrgetter("FinishReason.ABORT", "FinishReason.ERROR")(engine)
        attrgetter("num_generation_tokens", "last_token_ts")(stats.RequestStateStats(arrival_time=0.0))
        attrgetter("num_generation_tokens", "n_params_iter")(stats.IterationStats())
        attrgetter(*REQUEST_FIELDS)(engine.EngineCoreRequest)
    except (ImportError, AttributeError, TypeError) as error:
        version = getattr(importlib.import_module("vllm"), "__version__", "of unknown version")
        return f"in vLLM {version} {error}"
    return None


def output_handler(llm: "AsyncLLM") -> "asyncio.Task[None] | None":
    """Return vLLM's task that reads what the engine puts out, where there is one."""
    return getattr(llm, "output_handler", None)


def _require_call(owner: Any, name: str, count: int, keywords: tuple[str, ...] = ()) -> None:
    """Raise AttributeError or TypeError, with the name in it, unless it can be called with such arguments."""
    function = attrgetter(name)(owner)
    try:
        inspect.signature(function).bind(*[None] * count, **dict.fromkeys(keywords))
    except TypeError as error:
        raise TypeError(f"{name} takes other arguments: {error}") from error


class FastPath:
    """Takes requests past vLLM's output processor."""

    def __init__(
        self,
        llm: "AsyncLLM",
        detokenizer: "Detokenizer",
        progressed: Callable[[OutputBuffer], None],
        failed: Callable[["GenerationRequest", BaseException], None],
    ) -> None:
        """Stand in front of this engine's output processor; only where `available` returns None.

        Args:
            llm: The engine.
            detokenizer: Makes the texts.
            progressed: Called on the engine's loop when there is something to send: the end, and of a stream a piece.
            failed: Called on the engine's loop with a request that gets none, and why.
        """
        self._llm, self._detokenizer, self._progressed, self._failed = llm, detokenizer, progressed, failed
        self._new_stats = importlib.import_module(STATS).RequestStateStats
        reasons = importlib.import_module(ENGINE).FinishReason
        self._failures = (reasons.ABORT, reasons.ERROR)
        self._open: dict[str, OutputBuffer] = {}
        self._patterns: dict[str, EngineCoreRequest] = {}
        self._supported_tasks: Any = None
        processor = llm.output_processor
        self._process, self._propagate = processor.process_outputs, processor.propagate_error
        processor.process_outputs = self._process_outputs  # type: ignore[method-assign]
        processor.propagate_error = self._propagate_error  # type: ignore[method-assign]

    def accept(self, requests: list["GenerationRequest"]) -> Coroutine[Any, Any, None]:
        """Take charge of requests and return what sends them to the engine; from now on they can be cancelled."""
        for request in requests:
            text = self._detokenizer.start(request.token_ids, skip_special_tokens=request.params.skip_special_tokens)
            self._open[request.id] = OutputBuffer(request, text, self._new_stats(arrival_time=time.time()))
        return self._admit(requests)

    async def _admit(self, requests: list["GenerationRequest"]) -> None:
        self._llm._run_output_handler()
        for request in requests:
            try:
                core_request = await self._core_request(request)
                if request.id in self._open:  # not cancelled in the meantime
                    await self._llm.engine_core.add_request_async(core_request)
            except Exception as error:
                if self._open.pop(request.id, None) is not None:
                    self._failed(request, error)

    def cancel(self, request: "GenerationRequest") -> None:
        """Take a request out of the engine, if it is still there; on the engine's loop."""
        if self._open.pop(request.id, None) is not None:
            self._failed(request, asyncio.CancelledError())
            abort = self._llm.engine_core.abort_requests_async([request.id])
            self._aborting = asyncio.ensure_future(abort)  # held: a loop keeps only weak references to tasks

    def cancel_all(self) -> None:
        """Take every request out of the engine."""
        for buffer in list(self._open.values()):
            self.cancel(buffer.request)

    async def _core_request(self, request: "GenerationRequest") -> "EngineCoreRequest":
        """Return a request as the engine core takes it, validated by vLLM or like one that was."""
        # without a limit it is what the prompt leaves of the context: another one for each prompt
        key = request.sampling_key if request.params.max_tokens is not None else ""
        pattern = self._patterns.get(key)
        if pattern is None:
            prompt = {"type": "token", "prompt_token_ids": request.token_ids}
            self._supported_tasks = self._supported_tasks or await self._llm.get_supported_tasks()
            pattern = self._llm.input_processor.process_inputs(
                request.id,
                prompt,
                request.params,
                supported_tasks=self._supported_tasks,
                arrival_time=time.time(),  # type: ignore[arg-type]
                lora_request=request.lora,
                priority=request.priority,
            )
            if len(self._patterns) >= MOST_PATTERNS:
                self._patterns.clear()
            if key:
                self._patterns[key] = pattern
        return msgspec.structs.replace(
            pattern,
            request_id=request.id,
            external_req_id=request.id,
            prompt_token_ids=request.token_ids,
            arrival_time=time.time(),
        )

    def _process_outputs(
        self, outputs: list[Any], timestamp: float | None = None, stats: Any = None, *args: Any, **more: Any
    ) -> Any:
        """Gather the tokens of our requests; vLLM does the rest for all others."""
        others = []
        for output in outputs:
            buffer = self._open.get(output.request_id)
            if buffer is None:
                others.append(output)
                continue
            if stats is not None:
                self._count(buffer, output, timestamp or 0.0, stats)
            news = buffer.append(output.new_token_ids, output.finish_reason)
            if output.finish_reason is not None:
                self._finish(self._open.pop(output.request_id), output.finish_reason, stats)
            elif news:
                self._progressed(buffer)
        return self._process(others, timestamp, stats, *args, **more)

    def _count(self, buffer: OutputBuffer, output: Any, timestamp: float, stats: Any) -> None:
        """Update vLLM's statistics of this step; what is interesting about a request is its first token."""
        own = buffer.stats
        if not buffer.token_ids or output.events:
            lora = self._llm.output_processor.lora_states
            stats.update_from_output(output, timestamp, not buffer.token_ids, own, lora, None)
        else:
            count = len(output.new_token_ids)
            own.num_generation_tokens += count
            own.last_token_ts = timestamp
            stats.num_generation_tokens += count

    def _finish(self, buffer: OutputBuffer, reason: "FinishReason", stats: Any) -> None:
        request = buffer.request
        if stats is not None:
            prompt, limit = len(request.token_ids), request.params.max_tokens
            stats.update_from_finished_request(reason, request.id, prompt, limit, buffer.stats)
            stats.n_params_iter.append(1)
        if reason in self._failures:
            self._failed(request, RuntimeError(f"the engine ended the request early ({reason})"))
        else:
            self._progressed(buffer)

    def _propagate_error(self, error: Exception) -> None:
        """Tell the clients of all our requests that the engine has stopped."""
        buffers, self._open = list(self._open.values()), {}
        for buffer in buffers:
            self._failed(buffer.request, error)
        self._propagate(error)
