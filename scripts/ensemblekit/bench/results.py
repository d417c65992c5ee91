# SPDX-License-Identifier: Apache-2.0
"""The results of a bench: what one round measured, and the record of all rounds."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeInt, PositiveInt, TypeAdapter
from pydantic_core import from_json

from ensemblekit.bench.plan import USUAL_WORKLOAD

__all__ = ["BenchResult", "Round", "percentile"]

# what records of 2026 call it
NAMES_BEFORE = {"first_ms": "ttft_ms", "first_p99_ms": "ttft_p99_ms", "between_ms": "itl_ms", "whole_ms": "e2e_ms"}
NAMES_BEFORE |= {"whole_p99_ms": "e2e_p99_ms", "load": "workload", "loads": "workloads"}


class _Machine(BaseModel):
    """What readers of a record need of its machine."""

    device: str
    cores: int
    triton: str


class _Plan(BaseModel):
    """What readers of a record need of its plan."""

    gpus: int = 1
    targets: list[str] = []
    workloads: list[str] = Field(min_length=1)
    concurrencies: list[PositiveInt] = Field(min_length=1)
    rounds: NonNegativeInt
    max_tokens: PositiveInt


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
        ttft_ms: Median time to the first token (piece); that of the whole answer if nothing is streamed.
        ttft_p99_ms: The 99th percentile of it.
        e2e_ms: Median end-to-end latency: the time to the last piece.
        e2e_p99_ms: The 99th percentile of it.
        itl_ms: Median over the requests of the mean inter-token latency; 0 if nothing is streamed.
        workload: The kind of request.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False, extra="forbid")

    target: str
    concurrency: int
    number: int
    requests: int
    errors: int
    tokens_per_s: float
    ttft_ms: float
    ttft_p99_ms: float
    e2e_ms: float
    e2e_p99_ms: float
    itl_ms: float
    workload: str = USUAL_WORKLOAD

    @classmethod
    def of(
        cls,
        target: str,
        concurrency: int,
        number: int,
        answers: Sequence[Sequence[float]],
        workload: str = USUAL_WORKLOAD,
    ) -> "Round":
        """Return the results of a round from its answers: (begin, first piece, end, pieces, tokens), times in s.

        An answer of 0 pieces has failed.
        """
        good = [answer for answer in answers if answer[3] > 0]
        span = max(a[2] for a in good) - min(a[0] for a in good) if good else 1.0
        ttft = [1000 * (a[1] - a[0]) for a in good]
        e2e = [1000 * (a[2] - a[0]) for a in good]
        # by tokens, not by pieces: under load a piece may hold several
        itl = [1000 * (a[2] - a[1]) / max(1, a[4] - 1) for a in good if a[3] > 1]
        return cls(
            target=target,
            concurrency=concurrency,
            number=number,
            requests=len(good),
            errors=len(answers) - len(good),
            tokens_per_s=round(sum(a[4] for a in good) / span, 1),
            ttft_ms=round(percentile(ttft, 0.5), 2),
            ttft_p99_ms=round(percentile(ttft, 0.99), 2),
            e2e_ms=round(percentile(e2e, 0.5), 2),
            e2e_p99_ms=round(percentile(e2e, 0.99), 2),
            itl_ms=round(statistics.median(itl), 3) if itl else 0.0,
            workload=workload,
        )


@dataclass(frozen=True)
class BenchResult:
    """Everything a bench measured, and on what.

    Attributes:
        plan: What was measured; the fields of `BenchPlan`.
        machine: What it ran on.
        arguments: vLLM's engine arguments, the same for every target.
        ready_s: Seconds until each server was ready.
        rounds: Every round, warm-up included.
        answers: What the ensemble of each Triton server answered to one question asked many times at once, each
            different answer once.
        cross_check: What perf_analyzer measured on the same server, {} if it was not asked.
        profile: Where the time of the backend's process went, by py-spy, in the records that have it.
        began: Date and time.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(allow_inf_nan=False, extra="forbid")

    plan: dict[str, Any]
    machine: dict[str, Any]
    arguments: dict[str, Any]
    ready_s: dict[str, float]
    rounds: tuple[Round, ...]
    answers: dict[str, list[str]] = field(default_factory=dict)
    cross_check: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)
    began: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M"))

    @property
    def workloads(self) -> tuple[str, ...]:
        """The kinds of request that were measured."""
        return tuple(self.plan["workloads"])

    def measured(self, target: str, concurrency: int, workload: str | None = None) -> list[Round]:
        """Return a target's rounds at a concurrency without the warm-up; of the first workload if none is named."""
        wanted = (target, concurrency, workload or self.workloads[0])
        return [r for r in self.rounds if (r.target, r.concurrency, r.workload) == wanted and r.number > 0]

    def median(self, target: str, concurrency: int, name: str = "tokens_per_s", workload: str | None = None) -> float:
        """Return the median over the rounds of one value of `Round`; 0 if it was not measured."""
        values = [float(getattr(r, name)) for r in self.measured(target, concurrency, workload)]
        return statistics.median(values) if values else 0.0

    def ratio(self, target: str, base: str, concurrency: int, workload: str | None = None) -> float:
        """Return the median over the rounds of a target's tokens/s over another's in the same round."""
        pairs = zip(
            self.measured(target, concurrency, workload), self.measured(base, concurrency, workload), strict=False
        )
        ratios = [one.tokens_per_s / other.tokens_per_s for one, other in pairs if other.tokens_per_s]
        return statistics.median(ratios) if ratios else 0.0

    def medians(
        self, targets: Sequence[str], concurrencies: Sequence[int], name: str, workload: str | None = None
    ) -> dict[str, dict[int, float]]:
        """Return the medians of one value of `Round`, by target and concurrency."""
        return {
            target: {count: self.median(target, count, name, workload) for count in concurrencies} for target in targets
        }

    def ratios(self, target: str, base: str) -> dict[str, dict[int, float]]:
        """Return a target's tokens/s over another's, by workload and concurrency, to two places."""
        return {
            workload: {
                count: round(self.ratio(target, base, count, workload), 2) for count in self.plan["concurrencies"]
            }
            for workload in self.workloads
        }

    def requests(self, target: str) -> int:
        """Return how many answers of a target were received, the warm-up left out."""
        return sum(one.requests for one in self.rounds if one.target == target and one.number > 0)

    @property
    def errors(self) -> int:
        """How many requests failed, the warm-up left out."""
        return sum(one.errors for one in self.rounds if one.number > 0)

    def save(self, path: Path) -> Path:
        """Write the record as JSON and return the file.

        Raises:
            OSError: The file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> "BenchResult":
        """Read a record that `save` wrote, now or under the names of before.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no such record.
        """
        values = TypeAdapter(dict[str, JsonValue]).validate_python(from_json(path.read_bytes(), allow_inf_nan=False))
        rounds = values.get("rounds")
        values |= {"plan": _renamed(values.get("plan"))}
        values |= {"rounds": [_renamed(entry) for entry in rounds] if isinstance(rounds, list) else None}
        _Plan.model_validate(values["plan"])
        _Machine.model_validate(values.get("machine"))
        return TypeAdapter(cls).validate_python(values)


def _renamed(entry: JsonValue) -> JsonValue:
    if not isinstance(entry, dict):
        return entry
    return {NAMES_BEFORE.get(name, name): value for name, value in entry.items()}
