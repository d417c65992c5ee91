# SPDX-License-Identifier: Apache-2.0
"""Answers whose tokens are gathered here, past vLLM's machinery for each of them.

vLLM builds an output object for every token of every request, queues it, and wakes a task for it. An answer whose text
is made here needs none of that, streamed or not: a profile with 256 requests at once showed half of the loop's time
there, and of 256 streams the first pieces waited for most of a second behind it. Here a request goes to the engine core
directly, and its tokens into a list, from which the thread that sends takes what there is.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from vllm.v1.engine import EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.stats import RequestStateStats

from triton_vllm.gathering import Gathering
from triton_vllm.jobs import Job
from triton_vllm.text import TextMaker

# One request with certain sampling parameters is a pattern for all others with the same; a few kinds are usual.
MOST_PATTERNS = 64


class DirectAnswers:
    """Takes requests past vLLM's output processor."""

    def __init__(
        self,
        llm: AsyncLLM,
        text: TextMaker,
        progressed: Callable[[Gathering], None],
        failed: Callable[[Job, BaseException], None],
    ) -> None:
        """Stand in front of this engine's output processor.

        Args:
            llm: The engine.
            text: Makes the texts.
            progressed: Called on the engine's loop when there is something to send: the end, and of a stream a piece.
            failed: Called on the engine's loop with a job that gets none, and why.
        """
        self._llm, self._text, self._progressed, self._failed = llm, text, progressed, failed
        self._open: dict[str, Gathering] = {}
        self._patterns: dict[str, EngineCoreRequest] = {}
        self._supported_tasks: Any = None
        processor = llm.output_processor
        self._process, self._propagate = processor.process_outputs, processor.propagate_error
        processor.process_outputs = self._process_outputs  # type: ignore[method-assign]
        processor.propagate_error = self._propagate_error  # type: ignore[method-assign]

    @staticmethod
    def takes(job: Job) -> bool:
        """Return whether a job's answer can be gathered: one sequence, no probabilities, the text ours."""
        params = job.params
        plain = params.n == 1 and params.logprobs is None and params.prompt_logprobs is None
        return job.own_text and plain

    def accept(self, jobs: list[Job]) -> Coroutine[Any, Any, None]:
        """Take charge of jobs and return what sends them to the engine core; from now on they can be cancelled."""
        for job in jobs:
            text = self._text.growing(job.token_ids, skip_special_tokens=job.params.skip_special_tokens)
            self._open[job.id] = Gathering(job, text, RequestStateStats(arrival_time=time.time()))
        return self._admit(jobs)

    async def _admit(self, jobs: list[Job]) -> None:
        self._llm._run_output_handler()
        for job in jobs:
            try:
                request = await self._request(job)
                if job.id in self._open:  # not cancelled in the meantime
                    await self._llm.engine_core.add_request_async(request)
            except Exception as error:
                if self._open.pop(job.id, None) is not None:
                    self._failed(job, error)

    def cancel(self, job: Job) -> None:
        """Take a job out of the engine, if it is still there; on the engine's loop."""
        if self._open.pop(job.id, None) is not None:
            self._failed(job, asyncio.CancelledError())
            abort = self._llm.engine_core.abort_requests_async([job.id])
            self._aborting = asyncio.ensure_future(abort)  # held: a loop keeps only weak references to tasks

    def cancel_all(self) -> None:
        """Take every job out of the engine."""
        for gathering in list(self._open.values()):
            self.cancel(gathering.job)

    async def _request(self, job: Job) -> EngineCoreRequest:
        """Return the job as the engine core takes it, validated by vLLM or like one that was."""
        key = job.sampling_key if job.params.max_tokens is not None else ""
        pattern = self._patterns.get(key)
        if pattern is None:
            prompt = {"type": "token", "prompt_token_ids": job.token_ids}
            self._supported_tasks = self._supported_tasks or await self._llm.get_supported_tasks()
            pattern = self._llm.input_processor.process_inputs(
                job.id,
                prompt,
                job.params,
                supported_tasks=self._supported_tasks,
                arrival_time=time.time(),  # type: ignore[arg-type]
            )
            if len(self._patterns) >= MOST_PATTERNS:
                self._patterns.clear()
            if key:
                self._patterns[key] = pattern
        return msgspec.structs.replace(
            pattern,
            request_id=job.id,
            external_req_id=job.id,
            prompt_token_ids=job.token_ids,
            arrival_time=time.time(),
        )

    def _process_outputs(
        self, outputs: list[Any], timestamp: float | None = None, stats: Any = None, *args: Any, **more: Any
    ) -> Any:
        """Gather the tokens of our requests; vLLM does the rest for all others."""
        others = []
        for output in outputs:
            gathering = self._open.get(output.request_id)
            if gathering is None:
                others.append(output)
                continue
            if stats is not None:
                self._count(gathering, output, timestamp or 0.0, stats)
            news = gathering.add(output.new_token_ids, output.finish_reason)
            if output.finish_reason is not None:
                self._finish(self._open.pop(output.request_id), output.finish_reason, stats)
            elif news:
                self._progressed(gathering)
        return self._process(others, timestamp, stats, *args, **more)

    def _count(self, gathering: Gathering, output: Any, timestamp: float, stats: Any) -> None:
        """Update vLLM's statistics of this step; what is interesting about a request is its first token."""
        own = gathering.stats
        if not gathering.token_ids or output.events:
            lora = self._llm.output_processor.lora_states
            stats.update_from_output(output, timestamp, not gathering.token_ids, own, lora, None)
        else:
            count = len(output.new_token_ids)
            own.num_generation_tokens += count
            own.last_token_ts = timestamp
            stats.num_generation_tokens += count

    def _finish(self, gathering: Gathering, reason: FinishReason, stats: Any) -> None:
        job = gathering.job
        if stats is not None:
            prompt, limit = len(job.token_ids), job.params.max_tokens
            stats.update_from_finished_request(reason, job.id, prompt, limit, gathering.stats)
        if reason in (FinishReason.ABORT, FinishReason.ERROR):
            self._failed(job, RuntimeError(f"the engine ended the request early ({reason})"))
        else:
            self._progressed(gathering)

    def _propagate_error(self, error: Exception) -> None:
        """Tell the clients of all our requests that the engine has stopped."""
        gatherings, self._open = list(self._open.values()), {}
        for gathering in gatherings:
            self._failed(gathering.job, error)
        self._propagate(error)
