# SPDX-License-Identifier: Apache-2.0
"""What a bench measures: the targets, the load, and how the figures of one round come about."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ensemblekit.errors import ParameterError

__all__ = ["TARGETS", "BenchPlan", "Round", "Target", "check_targets", "percentile", "prompts"]

Target = Literal["vllm-serve", "llm", "ensemble"]
Protocol = Literal["http", "grpc"]
TARGETS: tuple[Target, ...] = get_args(Target)
REQUESTS_PER_CLIENT = 4  # enough that the tail, in which fewer than all clients are busy, is short
LEAST_REQUESTS = 8
SUBJECTS = (
    *("the sea", "a forest at night", "the history of bread", "how bridges stand", "the moon", "a small town"),
    *("the violin", "trains", "how bees live", "winter", "a market in spring", "the first telescope"),
)


@dataclass(frozen=True)
class BenchPlan:
    """The load of a bench.

    Attributes:
        targets: What is measured, in turn.
        concurrencies: Clients that each send their next request when the last one is answered.
        rounds: How often each is measured, after one round of warm-up.
        max_tokens: Tokens of each answer; the end-of-text token is ignored, so each has exactly as many.
        streaming: Whether answers come in pieces.
        protocol: Triton's endpoint; `vllm serve` has HTTP only.
        temperature: 0 is greedy.
    """

    targets: tuple[Target, ...] = TARGETS
    concurrencies: tuple[int, ...] = (1, 16, 64, 256)
    rounds: int = 4
    max_tokens: int = 128
    streaming: bool = False
    protocol: Protocol = "http"
    temperature: float = 0.0

    def requests(self, concurrency: int) -> int:
        """Return how many requests a round at this concurrency sends."""
        return max(LEAST_REQUESTS, REQUESTS_PER_CLIENT * concurrency)

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling parameters of every request."""
        return {"max_tokens": self.max_tokens, "temperature": self.temperature, "ignore_eos": True}


def check_targets(names: Sequence[str]) -> tuple[Target, ...]:
    """Return names as targets, in the usual order.

    Raises:
        ParameterError: One is none.
    """
    for name in names:
        if name not in TARGETS:
            raise ParameterError(
                f"measure the target {name!r}", found="no such target", hint=f"choose from {', '.join(TARGETS)}"
            )
    return tuple(target for target in TARGETS if target in (names or TARGETS))


def prompts(count: int, seed: int) -> list[str]:
    """Return questions that differ from each other early on, so that no engine has one's answer cached.

    >>> prompts(2, 7)
    ['(7-0) Write about the sea.', '(7-1) Write about a forest at night.']
    """
    return [f"({seed}-{number}) Write about {SUBJECTS[number % len(SUBJECTS)]}." for number in range(count)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of all lies (nearest rank); 0 of nothing.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(0, round(share * len(ordered)) - 1)] if ordered else 0.0


@dataclass(frozen=True)
class Round:
    """One round of one target at one concurrency.

    Attributes:
        target: What answered.
        concurrency: Clients at once.
        number: Which round; 0 is the warm-up.
        requests: Answers received.
        errors: Requests that failed.
        tokens_per_s: Generated tokens over the time from the first request to the last answer.
        first_ms: Median time to the first piece; that of the whole answer if nothing is streamed.
        first_p99_ms: The 99th percentile of it.
        whole_ms: Median time to the last piece.
        whole_p99_ms: The 99th percentile of it.
        between_ms: Median over the requests of the mean time between two pieces; 0 if nothing is streamed.
    """

    target: str
    concurrency: int
    number: int
    requests: int
    errors: int
    tokens_per_s: float
    first_ms: float
    first_p99_ms: float
    whole_ms: float
    whole_p99_ms: float
    between_ms: float

    @classmethod
    def of(
        cls, target: str, concurrency: int, number: int, max_tokens: int, answers: Sequence[Sequence[float]]
    ) -> "Round":
        """Return the figures of a round from its answers: (begin, first piece, end, pieces; 0 pieces: failed), in s."""
        good = [answer for answer in answers if answer[3] > 0]
        span = max(a[2] for a in good) - min(a[0] for a in good) if good else 1.0
        first = [1000 * (a[1] - a[0]) for a in good]
        whole = [1000 * (a[2] - a[0]) for a in good]
        between = [1000 * (a[2] - a[1]) / (a[3] - 1) for a in good if a[3] > 1]
        return cls(
            target, concurrency, number, len(good), len(answers) - len(good),
            round(len(good) * max_tokens / span, 1),
            round(percentile(first, 0.5), 2), round(percentile(first, 0.99), 2),
            round(percentile(whole, 0.5), 2), round(percentile(whole, 0.99), 2),
            round(statistics.median(between), 3) if between else 0.0,
        )  # fmt: skip


def request_body(target: Target, question: str, prompt: str, plan: BenchPlan) -> dict[str, Any]:
    """Return the JSON body with which a target is asked over HTTP.

    Args:
        target: What is asked.
        question: As a person types it: `vllm serve` and the ensemble apply the chat template themselves.
        prompt: The question with the chat template around it, for `llm`.
        plan: Length and streaming.
    """
    if target == "vllm-serve":
        messages = [{"role": "user", "content": question}]
        return {"model": "llm", "messages": messages, "stream": plan.streaming, **plan.sampling}
    own = {"chat_input": question} if target == "ensemble" else {"text_input": prompt, "exclude_input_in_output": True}
    return {**own, "stream": plan.streaming, "sampling_parameters": json.dumps(plan.sampling)}
