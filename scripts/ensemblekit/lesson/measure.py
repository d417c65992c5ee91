# SPDX-License-Identifier: Apache-2.0
"""Measurements as the lessons show them: a bench of this machine, and records of machines that most readers lack."""

from pathlib import Path

from ensemblekit.bench.figures import BenchResult
from ensemblekit.bench.plan import BenchPlan, Target
from ensemblekit.bench.run import ONE_GPU, STAND_IN, run_bench
from ensemblekit.errors import ParameterError
from ensemblekit.lesson.lesson import Lesson
from ensemblekit.lesson.show import Progress
from ensemblekit.paths import repo_root

__all__ = ["measure_cost", "recorded_bench"]

WITH_VLLM: tuple[Target, ...] = ("vllm-serve", *ONE_GPU)


def measure_cost(lesson: Lesson, *, clients: int, rounds: int, max_tokens: int) -> BenchResult:
    """Measure every way to the lesson's engine in turn, with one client and with several.

    Args:
        lesson: Says release, device and engine; with the stand-in there is no `vllm serve` to compare with.
        clients: Most clients at once.
        rounds: How often each is measured, after the warm-up.
        max_tokens: Tokens of each answer; the stand-in gives one word.

    Raises:
        ParameterError: PROVIDER is not `embedded`.
        KitError: A server did not start, or the load generator failed.
    """
    settings = lesson.settings
    if settings.provider != "embedded":
        raise ParameterError(
            f"measure with PROVIDER {settings.provider!r}",
            found="the bench starts the servers that it compares",
            hint="use PROVIDER 'embedded'",
        )
    stand_in = settings.engine == "stand-in"
    plan = BenchPlan(
        ONE_GPU if stand_in else WITH_VLLM,
        tuple(dict.fromkeys((1, clients))),
        rounds,
        1 if stand_in else max_tokens,
        ("http whole greedy", "http streamed greedy"),
    )
    device = STAND_IN if stand_in else settings.resolved_device
    with Progress("measuring") as progress:
        return run_bench(
            plan, device, settings.release, lesson.run_dir / "bench", lambda text, _done, _total: progress.tick(text)
        )


def recorded_bench(name: str) -> BenchResult:
    """Return a record that is committed with the lessons, for example `2026-11-25-h100-whole-http`.

    Raises:
        ParameterError: There is no such record.
    """
    folder: Path = repo_root() / "notebooks" / "records"
    file = folder / f"{name}.json"
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
        raise ParameterError(f"read the record {name!r}", found="no such file", hint=f"choose from {names}")
    return BenchResult.load(file)
