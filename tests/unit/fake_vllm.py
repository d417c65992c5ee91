# SPDX-License-Identifier: Apache-2.0
"""A stand-in for vLLM as far as the backend uses it: an engine that gives every prompt the same answer.

It has both ways of the real one: the public `generate()`, and the parts that the fast path stands in front of.
"""

import asyncio
import sys
import types
from collections.abc import AsyncIterator
from enum import Enum
from functools import cache
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import tokenizers

ANSWER = "Paris 🙂."
END = "<end>"
CONTEXT = 100


@cache
def byte_tokenizer() -> Any:
    """One token for each byte: characters beyond ASCII take several."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(dict(zip(alphabet, range(256), strict=True)), []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


class RequestOutputKind(Enum):
    CUMULATIVE, DELTA, FINAL_ONLY = range(3)


class FinishReason(Enum):
    STOP, LENGTH, ABORT, ERROR = "stop", "length", "abort", "error"

    def __str__(self) -> str:
        return str(self.value)


class VLLMClientError(Exception):
    """As vLLM 0.32's: not a ValueError."""


class EngineGenerateError(Exception):
    """Something else went wrong with a request."""


class EngineDeadError(Exception):
    """The engine's process is gone."""


class SamplingParams(msgspec.Struct):  # type: ignore[misc]
    """The parameters that decide the way of an answer, and a few others."""

    n: int = 1
    seed: int | None = None
    temperature: float = 1.0
    presence_penalty: float = 0.0
    max_tokens: int | None = 16
    stop: str | list[str] | None = None
    bad_words: list[str] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured_outputs: dict[str, Any] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    skip_clone: bool = False

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise VLLMClientError(f"temperature must be non-negative, got {self.temperature}.")


class LoRARequest:
    def __init__(self, lora_name: str, lora_int_id: int, lora_path: str) -> None:
        self.lora_name, self.lora_int_id, self.lora_path = lora_name, lora_int_id, lora_path


class EngineCoreRequest(msgspec.Struct):  # type: ignore[misc]
    request_id: str
    prompt_token_ids: list[int] | None
    sampling_params: Any
    arrival_time: float
    lora_request: Any = None
    external_req_id: str | None = None


class RequestStateStats:
    def __init__(self, arrival_time: float = 0.0) -> None:
        self.arrival_time, self.num_generation_tokens, self.last_token_ts = arrival_time, 0, 0.0


class IterationStats:
    def __init__(self) -> None:
        self.num_generation_tokens, self.n_params_iter = 0, list[int]()

    def update_from_output(self, output: Any, at: float, prefilling: bool, stats: Any, lora: Any, name: Any) -> None:
        self.num_generation_tokens += len(output.new_token_ids)

    def update_from_finished_request(self, reason: Any, name: str, prompt: int, limit: Any, stats: Any) -> None:
        pass


class OutputProcessor:
    """Hands each output to the queue of its request, as the part that the fast path stands in front of."""

    def __init__(self) -> None:
        self.lora_states, self.queues = None, dict[str, asyncio.Queue[Any]]()

    def process_outputs(self, outputs: list[Any], timestamp: float | None = None, stats: Any = None) -> Any:
        for output in outputs:
            self.queues[output.request_id].put_nowait(output)
        return SimpleNamespace(request_outputs=[], reqs_to_abort=[])

    def propagate_error(self, error: Exception) -> None:
        for queue in self.queues.values():
            queue.put_nowait(error)


class EngineCore:
    """A request's tokens come one a step; `dead` stands for a process that is gone."""

    def __init__(self) -> None:
        self.running: dict[str, list[Any]] = {}
        self.news, self.dead, self.aborted = asyncio.Event(), False, list[str]()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        text = ANSWER if request.lora_request is None else f"{request.lora_request.lora_name}: {ANSWER}"
        tokenizer = byte_tokenizer()
        ids = [*tokenizer.encode(text).ids, tokenizer.token_to_id(END)]
        limit = request.sampling_params.max_tokens or CONTEXT
        reason = FinishReason.STOP if len(ids) <= limit else FinishReason.LENGTH
        ids = ids[:limit]
        self.running[request.request_id] = [
            SimpleNamespace(
                request_id=request.request_id,
                new_token_ids=[token],
                finish_reason=reason if number == len(ids) - 1 else None,
                events=None,
            )
            for number, token in enumerate(ids)
        ]
        self.news.set()

    async def abort_requests_async(self, names: list[str]) -> None:
        for name in names:
            self.running.pop(name, None)
            self.aborted.append(name)

    async def step(self) -> list[Any]:
        while not self.running and not self.dead:
            self.news.clear()
            await self.news.wait()
        await asyncio.sleep(0)
        if self.dead:
            raise EngineDeadError
        outputs = [left.pop(0) for left in self.running.values()]
        self.running = {name: left for name, left in self.running.items() if left}
        return outputs


class AsyncLLM:
    """The engine's client."""

    made: "list[AsyncLLM]" = []  # noqa: RUF012 - the tests look at the last one

    @classmethod
    def from_engine_args(cls, arguments: Any, stat_loggers: Any = None) -> "AsyncLLM":
        cls.made.append(cls())
        return cls.made[-1]

    def __init__(self) -> None:
        self.model_config = SimpleNamespace(max_model_len=CONTEXT)
        mode = SimpleNamespace(separate_routine=lambda: False)
        self.vllm_config = SimpleNamespace(
            compilation_config=SimpleNamespace(cudagraph_mode=mode), scheduler_config=SimpleNamespace(policy="fcfs")
        )
        self.input_processor = SimpleNamespace(process_inputs=self._process_inputs)
        self.output_processor, self.engine_core = OutputProcessor(), EngineCore()
        self.output_handler: asyncio.Task[None] | None = None
        self.generated, self.loras, self.refuses = list[str](), list[Any](), dict[str, Exception]()

    def get_tokenizer(self) -> Any:
        tokenizer = byte_tokenizer()
        return SimpleNamespace(_tokenizer=tokenizer, encode=lambda text: tokenizer.encode(text).ids)

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def add_lora(self, lora_request: Any) -> bool:
        self.loras.append(lora_request)
        return True

    async def check_health(self) -> None:
        if self.engine_core.dead:
            raise EngineDeadError

    def shutdown(self, timeout: float | None = None) -> None:
        pass

    async def generate(
        self, prompt: Any, params: SamplingParams, request_id: str, *, lora_request: Any = None, priority: int = 0
    ) -> AsyncIterator[Any]:
        self._run_output_handler()
        self.generated.append(request_id)
        queue = self.output_processor.queues[request_id] = asyncio.Queue()
        try:
            request = self._process_inputs(request_id, prompt, params, ("generate",), lora_request=lora_request)
        except VLLMClientError:
            raise
        except Exception as error:
            raise EngineGenerateError from error
        await self.engine_core.add_request_async(request)
        decode = byte_tokenizer().decode
        ids, sent, reason = list[int](), 0, None
        while reason is None:
            output = await queue.get()
            if isinstance(output, Exception):
                raise output
            ids += output.new_token_ids
            reason = output.finish_reason
            text = decode(ids).rstrip("\ufffd") if params.detokenize else ""
            delta = params.output_kind is RequestOutputKind.DELTA
            if delta or reason is not None:
                yield self._output(params, ids if not delta else ids[-1:], text[sent:], reason, prompt)
            sent = len(text) if delta else 0

    def _output(self, params: SamplingParams, ids: list[int], text: str, reason: Any, prompt: Any) -> Any:
        logprobs = None
        if params.logprobs is not None:
            logprobs = [{token: SimpleNamespace(logprob=-0.5, rank=1, decoded_token="x")} for token in ids]
        outputs = [
            SimpleNamespace(
                index=index,
                text=text,
                token_ids=list(ids),
                logprobs=logprobs,
                cumulative_logprob=None if logprobs is None else -0.5 * len(ids),
                finish_reason=None if reason is None else str(reason),
            )
            for index in range(params.n)
        ]
        return SimpleNamespace(
            outputs=outputs, finished=reason is not None, prompt_token_ids=prompt["prompt_token_ids"]
        )

    def _process_inputs(
        self,
        request_id: str,
        prompt: Any,
        params: SamplingParams,
        supported_tasks: Any,
        arrival_time: float | None = None,
        lora_request: Any = None,
        priority: int = 0,
    ) -> EngineCoreRequest:
        for text, error in self.refuses.items():
            if byte_tokenizer().decode(prompt["prompt_token_ids"]) == text:
                raise error
        return EngineCoreRequest(request_id, prompt["prompt_token_ids"], params, arrival_time or 0.0, lora_request)

    def _run_output_handler(self) -> None:
        if self.output_handler is None:
            self.output_handler = asyncio.get_running_loop().create_task(self._handle())

    async def _handle(self) -> None:
        try:
            while True:
                self.output_processor.process_outputs(await self.engine_core.step(), 0.0, IterationStats())
        except EngineDeadError as error:
            self.output_processor.propagate_error(error)


MODULES: dict[str, dict[str, Any]] = {
    "vllm": {"SamplingParams": SamplingParams, "__version__": "9.9.9"},
    "vllm.exceptions": {"VLLMClientError": VLLMClientError},
    "vllm.sampling_params": {"RequestOutputKind": RequestOutputKind},
    "vllm.engine": {},
    "vllm.engine.arg_utils": {"AsyncEngineArgs": lambda **arguments: SimpleNamespace(**arguments)},
    "vllm.lora": {},
    "vllm.lora.request": {"LoRARequest": LoRARequest},
    "vllm.v1": {},
    "vllm.v1.engine": {"EngineCoreRequest": EngineCoreRequest, "FinishReason": FinishReason},
    "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
    "vllm.v1.engine.exceptions": {
        "EngineDeadError": EngineDeadError,
        "EngineGenerateError": EngineGenerateError,
    },
    "vllm.v1.metrics": {},
    "vllm.v1.metrics.stats": {"RequestStateStats": RequestStateStats, "IterationStats": IterationStats},
    "vllm.v1.metrics.loggers": {"StatLoggerBase": object},
}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in in the place of vLLM; an installed one is not imported."""
    monkeypatch.setattr(AsyncLLM, "made", [])
    for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
        monkeypatch.delitem(sys.modules, name)
    for name, contents in MODULES.items():
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
