# SPDX-License-Identifier: Apache-2.0
"""What a bench measures: the targets, the workloads, and what each target is asked."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ensemblekit.errors import one_of

__all__ = [
    "CONVERSATION",
    "SPREAD",
    "TARGETS",
    "WORKLOADS",
    "BenchPlan",
    "Target",
    "Workload",
    "check_targets",
    "check_workloads",
    "prompts",
    "request_body",
    "sampling_parameters",
]

Target = Literal[
    "engine",
    "vllm-serve",
    "llm",
    "ensemble",
    "chat",
    "bls",
    "openai",
    "replicas",
    "servers",
    "tensor-parallel",
    "ray",
    "ray-serve",
]
Protocol = Literal["http", "grpc"]
TARGETS: tuple[Target, ...] = get_args(Target)
SPREAD: tuple[Target, ...] = ("replicas", "servers", "tensor-parallel", "ray")  # the ensemble on every visible GPU
CONVERSATION: tuple[Target, ...] = ("chat", "openai")  # both need the ensemble of env/openai
USUAL: tuple[Target, ...] = ("engine", "vllm-serve", "llm", "ensemble", "bls")
OPENAI_MODELS = {"vllm-serve": "llm", "openai": "chat", "ray-serve": "llm"}  # asked over OpenAI's API, by these names
REQUESTS_PER_CLIENT = 4  # enough that the tail, in which fewer than all clients are busy, is short
LEAST_REQUESTS = 8
MOST_CLIENTS = 1000  # at once; seeds are told apart by it
SAMPLED_TEMPERATURE = 0.8
SHORTEST = 0.25  # of the mean, where lengths vary; the longest is as far above it
SUBJECTS = (
    *("the sea", "a forest at night", "the history of bread", "how bridges stand", "the moon", "a small town"),
    *("the violin", "trains", "how bees live", "winter", "a market in spring", "the first telescope"),
)


@dataclass(frozen=True)
class Workload:
    """A kind of request.

    Attributes:
        protocol: Triton's endpoint; OpenAI's API, of `vllm serve` and of the gateway, is HTTP in every workload.
        streaming: Whether answers come in pieces.
        temperature: 0 is greedy.
        varied: Whether answers differ in length, as those to real questions do. Answers of one length make clients
            that began together go on together, so that new prompts come all at once.
    """

    protocol: Protocol = "http"
    streaming: bool = False
    temperature: float = 0.0
    varied: bool = False

    @property
    def name(self) -> str:
        """What reports and records call it.

        >>> Workload("grpc", streaming=True, varied=True).name
        'grpc streamed greedy varied'
        """
        kind = "streamed" if self.streaming else "whole"
        way = "sampled" if self.temperature else "greedy"
        return f"{self.protocol} {kind} {way}{' varied' if self.varied else ''}"


WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        Workload(protocol, streaming, temperature, varied)
        for varied in (False, True)
        for temperature in (0.0, SAMPLED_TEMPERATURE)
        for streaming in (False, True)
        for protocol in get_args(Protocol)
    )
}
USUAL_WORKLOAD = Workload().name


@dataclass(frozen=True)
class BenchPlan:
    """What is measured, and how often.

    Attributes:
        targets: What is measured, in turn.
        concurrencies: Clients that each send their next request when the last one is answered.
        rounds: How often each is measured, after one round of warm-up.
        max_tokens: Tokens of each answer, the mean where they vary; the end-of-text token is ignored, so that each has
            exactly as many as it was asked for.
        workloads: Names of the kinds of request, keys of `WORKLOADS`.
        requests_per_client: How many requests each client sends in a round.
    """

    targets: tuple[Target, ...] = USUAL
    concurrencies: tuple[int, ...] = (1, 16, 64, 256)
    rounds: int = 4
    max_tokens: int = 128
    workloads: tuple[str, ...] = (USUAL_WORKLOAD,)
    requests_per_client: int = REQUESTS_PER_CLIENT

    def requests(self, concurrency: int) -> int:
        """Return how many requests a round at this concurrency sends."""
        return max(LEAST_REQUESTS, self.requests_per_client * concurrency)

    def seed(self, number: int, workload: Workload, concurrency: int, target: Target) -> int:
        """Return the seed of a round's prompts: no two rounds of any workload and target share one."""
        turn = number * len(self.workloads) + self.workloads.index(workload.name)
        return len(self.targets) * (MOST_CLIENTS * turn + concurrency) + self.targets.index(target)

    def bounds(self, workload: Workload) -> tuple[int, int]:
        """Return the fewest and the most tokens that an answer has; they are as far from `max_tokens`."""
        shortest = max(1, round(SHORTEST * self.max_tokens)) if workload.varied else self.max_tokens
        return shortest, 2 * self.max_tokens - shortest

    def lengths(self, workload: Workload, count: int, seed: int) -> list[int]:
        """Return how many tokens each of a round's answers has.

        >>> BenchPlan().lengths(Workload(varied=True), 4, seed=1)
        [66, 177, 48, 97]
        """
        draw, (shortest, longest) = random.Random(seed), self.bounds(workload)  # noqa: S311 - no secret
        return [draw.randint(shortest, longest) for _ in range(count)]

    def measures(self, target: Target, workload: Workload) -> bool:
        """Return whether a target takes a workload.

        The engine alone has no endpoint, and so nothing to stream over; it answers in batches, which varied lengths
        would make wait for their longest answer. The deployment of Ray Serve answers whole.
        """
        if target == "ray-serve":
            return not workload.streaming
        return target != "engine" or not (workload.streaming or workload.varied or workload.protocol == "grpc")


def check_targets(names: Sequence[str]) -> tuple[Target, ...]:
    """Return names as targets, in the usual order.

    Raises:
        ParameterError: One is none.
    """
    wanted = [one_of("the target", name, TARGETS) for name in names or USUAL]
    return tuple(target for target in TARGETS if target in wanted)


def check_workloads(names: Sequence[str]) -> tuple[str, ...]:
    """Return names as names of workloads, in the usual order; `all` is every one.

    Raises:
        ParameterError: One is none.
    """
    wanted = [one_of("the load", name, (*WORKLOADS, "all")) for name in names or (USUAL_WORKLOAD,)]
    return tuple(name for name in WORKLOADS if "all" in wanted or name in wanted)


def prompts(count: int, seed: int) -> list[str]:
    """Return questions that differ from each other early on, so that no engine has one's answer cached.

    >>> prompts(2, 7)
    ['(7-0) Write about the sea.', '(7-1) Write about a forest at night.']
    """
    return [f"({seed}-{number}) Write about {SUBJECTS[number % len(SUBJECTS)]}." for number in range(count)]


def sampling_parameters(workload: Workload, tokens: int) -> dict[str, Any]:
    """Return the sampling parameters of a request of a workload."""
    return {"max_tokens": tokens, "temperature": workload.temperature, "ignore_eos": True}


def request_body(target: Target, question: str, prompt: str, tokens: int, workload: Workload) -> dict[str, Any]:
    """Return the JSON body with which a target is asked over HTTP; over gRPC its values become tensors.

    Args:
        target: What is asked.
        question: As a person types it: all but `llm` apply the chat template themselves.
        prompt: The question with the chat template around it, for `llm`.
        tokens: The answer's length.
        workload: The kind of request.
    """
    sampling = sampling_parameters(workload, tokens)
    if target in OPENAI_MODELS:
        messages = [{"role": "user", "content": question}]
        return {"model": OPENAI_MODELS[target], "messages": messages, "stream": workload.streaming, **sampling}
    own: dict[str, Any] = {"chat_input": question}
    if target == "llm":
        own = {"text_input": prompt, "exclude_input_in_output": True}
    elif target == "chat":
        own |= dict.fromkeys(("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens"), True)
    return {**own, "stream": workload.streaming, "sampling_parameters": json.dumps(sampling)}
