# SPDX-License-Identifier: Apache-2.0
"""vLLM's AsyncLLM on an asyncio loop in a thread of its own."""

import asyncio
import contextlib
import gc
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

import psutil
import triton_python_backend_utils as pb_utils
from vllm import exceptions
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from triton_vllm.admission import AdmissionController
from triton_vllm.detokenizer import Detokenizer
from triton_vllm.fast_path import FastPath, available, output_handler
from triton_vllm.metrics import stat_logger_factory
from triton_vllm.output_buffer import OutputBuffer
from triton_vllm.request import GenerationRequest, Route, choose_route
from triton_vllm.responses import ERROR_PREFIX, ResponseSender
from triton_vllm.sampling import BadRequest, UnknownAdapter

HEALTH_POLL_S = 1.0
STOP_TIMEOUT_S = 20.0  # for the tasks that were still running, and for the engine; Triton itself waits for 30
# The engine's processes hold nothing worth keeping, and take 3 to 17 s to end by themselves: they tidy up their heaps,
# and wait for each other before they kill.
STOP_GRACE_S = 1.0
KILL_POLL_S = 0.02
# How much longer a step takes with new prompts in it, whatever their number; measured on an H100 with 256 requests:
# 4.5 ms without, 8 to 25 ms with. It is the processor's time to launch the kernels one by one, so it is much the same
# on other GPUs. As simulated in tests/unit/test_backend_admission.py, 4 to 8 ms here give the same throughput.
STEP_COST_S = 0.006
# What vLLM raises about a request: a ValueError in the older versions, an error of its own in the newer ones.
REFUSALS = (ValueError, TypeError, OverflowError, getattr(exceptions, "VLLMClientError", ValueError))
# What vLLM says when the pipe of its engine closed a moment before the process could be waited for.
NOBODY_ENDED = "Failed core proc(s): {}"
GONE_MESSAGE = "the vLLM engine has stopped after an error (see the server's log); load the model again"


class Engine:
    """A running engine; requests go in with `submit`, answers come out through `ResponseSender`.

    Attributes:
        healthy: False once it was found dead, by `watch_health`.
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        responses: ResponseSender,
        labels: dict[str, str] | None,
        *,
        longest_wait_s: float,
        fast_path: bool,
        lora_adapters: dict[str, str] | None,
    ) -> None:
        """Start the engine and return when it can serve.

        Args:
            arguments: vLLM's engine arguments.
            responses: Where answers go.
            labels: Labels of its metrics; None reports none.
            longest_wait_s: How long a request waits at most for others to join the running ones with, in seconds.
            fast_path: Whether answers may go past vLLM's output processor, where this vLLM allows it.
            lora_adapters: Name and place of each LoRA adapter; None if LoRA is not enabled.

        Raises:
            TritonModelException: vLLM refuses the arguments or does not start.
        """
        self._responses = responses
        self._lora_enabled = lora_adapters is not None
        self._loras = {
            name: LoRARequest(name, number, place)
            for number, (name, place) in enumerate((lora_adapters or {}).items(), start=1)
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="vllm-loop", daemon=True)
        self._thread.start()
        try:
            start = self._start(_engine_args(arguments), labels)
            self._llm: AsyncLLM = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        except Exception as error:
            self._end_loop()
            reason = f"vLLM did not start: {type(error).__name__}: {error}"
            if NOBODY_ENDED in reason:
                reason = reason.replace(NOBODY_ENDED, NOBODY_ENDED.format(_killed_children()))
            raise pb_utils.TritonModelException(reason) from error
        self._context = int(self._llm.model_config.max_model_len)
        self._detokenizer = Detokenizer(self._llm.get_tokenizer())
        self._fast_path = self._take_fast_path(allowed=fast_path)
        self.healthy = True
        self._inside: set[GenerationRequest] = set()
        self._admission = AdmissionController(
            self._admit,
            lambda: len(self._inside),
            step_cost_s=STEP_COST_S if _replays_decoding_alone(self._llm) else 0.0,
            longest_s=longest_wait_s,
        )
        # What exists now lives as long as the engine; the collector need not walk it again.
        gc.collect()
        gc.freeze()

    def tokenize(self, prompt: str) -> list[int]:
        """Return the prompt's tokens.

        Raises:
            BadRequest: They leave no room for an answer in the model's context.
        """
        ids = self._detokenizer.encode(prompt)
        if not ids:
            raise BadRequest("text_input has no tokens: there is nothing to continue")
        if len(ids) >= self._context:
            raise BadRequest(
                f"the prompt has {len(ids)} tokens; this model's context (max_model_len) holds "
                f"{self._context}, and the answer needs at least one"
            )
        return ids

    def route(self, params: Any, *, stream: bool) -> Route:
        """Return the way that an answer with these sampling parameters takes."""
        own_text = self._detokenizer.can_decode(params)
        return choose_route(params, stream=stream, own_text=own_text, fast_path=self._fast_path is not None)

    def watch_health(self, died: Callable[[Exception], None]) -> None:
        """Ask the engine every second whether it lives; when it does not, tell `died` once, in another thread."""
        self._loop.call_soon_threadsafe(lambda: self._keep(self._watch_health(died)))

    def lora(self, name: Any) -> LoRARequest | None:
        """Return the LoRA adapter of a name; None for None.

        Raises:
            UnknownAdapter: There is none of this name, or LoRA is not enabled.
        """
        if name is None:
            return None
        if not self._lora_enabled:
            pb_utils.Logger.log_info("[vllm] LoRA is not enabled, please restart the backend with LoRA enabled.")
            raise UnknownAdapter("LoRA feature is not enabled.")
        if not isinstance(name, str) or name not in self._loras:
            pb_utils.Logger.log_info(f"[vllm] LoRA {name} not found.")
            raise UnknownAdapter(f"LoRA {name} is not supported, we currently support {list(self._loras)}")
        return self._loras[name]

    def priority(self, given: Any) -> int:
        """Return the priority of a request.

        Raises:
            BadRequest: It is not a whole number, or this engine takes requests in their order.
        """
        try:
            value = int(given)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadRequest(f"priority must be a whole number, not {given!r}") from error
        if value and self._llm.vllm_config.scheduler_config.policy != "priority":
            raise BadRequest('priority has no effect: model.json needs "scheduling_policy": "priority"')
        return value

    def submit(self, requests: list[GenerationRequest]) -> None:
        """Take requests from any thread; the loop is woken once for all of them."""
        self._loop.call_soon_threadsafe(self._admission.submit, requests)

    def stop(self) -> None:
        """End what still runs and shut the engine's processes down."""
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result()
        end = threading.Timer(STOP_GRACE_S, _kill, [[child.pid for child in multiprocessing.active_children()]])
        end.start()
        self._llm.shutdown(timeout=STOP_TIMEOUT_S)  # it says first that this end is wanted, and waits for it
        end.cancel()
        end.join()
        self._end_loop()
        # Gone now rather than when the interpreter ends: its destructor needs modules that are gone by then.
        del self._llm
        gc.collect()

    def _take_fast_path(self, *, allowed: bool) -> FastPath | None:
        missing = available(self._llm) if allowed else 'parameter FAST_PATH is "no"'
        if missing:
            pb_utils.Logger.log_info(f"[vllm] no fast path, answers come from vLLM's generate(): {missing}")
            return None
        return FastPath(self._llm, self._detokenizer, self._send_buffered, self._send_error)

    def _admit(self, requests: list[GenerationRequest]) -> None:
        self._inside.update(requests)
        fast = [request for request in requests if request.route is Route.FAST_PATH]
        for request in requests:
            if request.route is not Route.FAST_PATH:
                task = self._keep(self._generate(request))
                self._responses.watch(request, partial(self._loop.call_soon_threadsafe, task.cancel))
        if fast and self._fast_path:
            self._keep(self._fast_path.accept(fast))
            for request in fast:
                cancel = partial(self._loop.call_soon_threadsafe, self._fast_path.cancel, request)
                self._responses.watch(request, cancel)

    def _keep(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Start a task and hold it until it is done."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch_health(self, died: Callable[[Exception], None]) -> None:
        while self.healthy:
            await asyncio.sleep(HEALTH_POLL_S)
            try:
                await self._llm.check_health()
            except Exception as error:
                self.healthy = False
                await asyncio.to_thread(died, error)

    async def _generate(self, request: GenerationRequest) -> None:
        prompt = {"type": "token", "prompt_token_ids": request.token_ids, "arrival_time": time.time()}
        try:
            outputs = self._llm.generate(
                prompt,  # type: ignore[arg-type]
                request.params,
                request.id,
                lora_request=request.lora,
                priority=request.priority,
            )
            async for output in outputs:
                self._responses.chunk(request, partial(self._texts, request, output), final=output.finished)
        except (asyncio.CancelledError, Exception) as error:
            self._send_error(request, error)
        self._ended(request)

    def _ended(self, request: GenerationRequest) -> None:
        self._inside.discard(request)
        self._admission.decide()

    def _send_buffered(self, answer: OutputBuffer) -> None:
        request, final = answer.request, answer.finish_reason is not None
        if final:
            self._ended(request)
        self._responses.chunk(request, lambda: [self._echo(request) + answer.drain(last=final)], final=final)

    def _send_error(self, request: GenerationRequest, error: BaseException) -> None:
        """Tell a client why there is no answer: what vLLM says of the request, or that the server failed."""
        self._ended(request)
        codes = pb_utils.TritonError
        cause = (error.__cause__ or error) if isinstance(error, EngineGenerateError) else error
        if isinstance(cause, asyncio.CancelledError):
            pb_utils.Logger.log_info("[vllm] Successfully cancelled the request")
            self._responses.error(request, "Request was cancelled", codes.CANCELLED)
            return
        pb_utils.Logger.log_error(f"[vllm] {ERROR_PREFIX}{request.id}: {cause!r}")
        if isinstance(cause, EngineDeadError):
            self._responses.error(request, ERROR_PREFIX + GONE_MESSAGE, codes.UNAVAILABLE)
        elif isinstance(cause, REFUSALS):
            self._responses.error(request, f"{ERROR_PREFIX}{cause}", codes.INVALID_ARG)
        else:
            message = f"{ERROR_PREFIX}vLLM failed on this request ({type(cause).__name__}); see the server's log"
            self._responses.error(request, message, codes.INTERNAL)

    def _texts(self, request: GenerationRequest, output: Any) -> list[str]:
        """Return one text for each sequence; of a stream, what is new since the last piece."""
        texts = [""] * request.params.n
        for piece in output.outputs:
            text = piece.text if request.route is Route.VLLM else self._decode(request, piece)
            texts[piece.index] = self._echo(request) + text
            if request.additional:
                request.additional.add(piece)
        return texts

    def _decode(self, request: GenerationRequest, answer: Any) -> str:
        """Return the text of a whole answer that vLLM has left to us."""
        skip = request.params.skip_special_tokens
        return self._detokenizer.decode(request.token_ids, answer, skip_special_tokens=skip)

    @staticmethod
    def _echo(request: GenerationRequest) -> str:
        return request.prompt if request.echo else ""

    async def _start(self, engine_args: AsyncEngineArgs, labels: dict[str, str] | None) -> AsyncLLM:
        llm = AsyncLLM.from_engine_args(engine_args, stat_loggers=_stat_loggers(labels))
        await llm.get_supported_tasks()  # asked once here instead of by the first request
        for name, adapter in self._loras.items():
            try:
                await llm.add_lora(adapter)  # a wrong one is an error now, not of the first request
            except Exception as error:
                llm.shutdown(timeout=STOP_TIMEOUT_S)
                raise ValueError(f"LoRA {name} cannot be loaded from {adapter.lora_path}: {error}") from error
        return llm

    async def _cancel_all(self) -> None:
        self._admission.flush()
        if self._fast_path:
            self._fast_path.cancel_all()
        await _cancel(list(self._tasks))
        # vLLM's own reader of the engine's output would report the end of the engine as a crash
        await _cancel([handler for handler in [output_handler(self._llm)] if handler])

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        leftover = asyncio.all_tasks(self._loop)
        for task in leftover:
            task.cancel()
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(asyncio.gather(*leftover, return_exceptions=True))
        self._loop.close()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_TIMEOUT_S)


def _kill(pids: list[int]) -> None:
    """Kill this process's children and all that came of them, and return once these are gone and their memory free."""
    below = list[psutil.Process]()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            below += process.children(recursive=True)
            process.kill()  # whoever started it waits for it
    for process in below:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while any(map(_lives, below)) and time.monotonic() < deadline:
        time.sleep(KILL_POLL_S)


def _lives(process: psutil.Process) -> bool:
    """Return whether a process holds memory still: an orphan that ended stays as a zombie until the server has."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)


def _killed_children() -> dict[str, int]:
    """Return which signals ended this process's children, as exit codes by name; those told to end do not count."""
    children = [child for child in gc.get_objects() if issubclass(type(child), BaseProcess)]
    codes = {child.name: child.exitcode for child in children}
    return {name: code for name, code in codes.items() if code is not None and code < 0 and code != -signal.SIGTERM}


def _replays_decoding_alone(llm: AsyncLLM) -> bool:
    """Return whether steps without new prompts are replayed as one CUDA graph, and others are not."""
    return bool(llm.vllm_config.compilation_config.cudagraph_mode.separate_routine())


def _stat_loggers(labels: dict[str, str] | None) -> list[Any] | None:
    if labels is None:
        return None
    try:
        return [stat_logger_factory(labels)]
    except pb_utils.TritonModelException as error:  # the server was started with --allow-metrics=false
        pb_utils.Logger.log_warn(f"[vllm] no metrics are reported: {error}")
        return None


def _engine_args(arguments: dict[str, Any]) -> AsyncEngineArgs:
    # vLLM's own console and Prometheus loggers have no reader here; ours reports to Triton instead.
    return AsyncEngineArgs(**(arguments | {"disable_log_stats": True}))
