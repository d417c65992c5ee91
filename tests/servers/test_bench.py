# SPDX-License-Identifier: Apache-2.0
"""The bench on a real server with the stand-in for vLLM: Triton's own work, in seconds."""

from pathlib import Path

import pytest

from ensemblekit.bench.figures import BenchResult
from ensemblekit.bench.plan import BenchPlan, check_loads, check_targets
from ensemblekit.bench.run import ONE_GPU, RECORD, STAND_IN, run_bench
from ensemblekit.errors import ParameterError

pytestmark = pytest.mark.server
LOADS = ("http whole greedy", "http streamed greedy")


def test_bench_asks_every_target_with_every_load_and_keeps_what_it_has_on_the_way(tmp_path: Path) -> None:
    plan = BenchPlan(ONE_GPU, (1, 4), rounds=1, max_tokens=1, loads=check_loads(LOADS), requests_per_client=2)
    kept = list[int]()

    def look(text: str, done: int, total: int) -> None:
        if total and done:
            kept.append(len(BenchResult.load(tmp_path / RECORD).rounds))

    result = run_bench(plan, STAND_IN, "24.08", tmp_path, look)

    print("\n".join(f"{one.load}: {one.target} x {one.concurrency}: {one.tokens_per_s}/s" for one in result.rounds))
    assert {(one.target, one.concurrency, one.load) for one in result.rounds} == {
        (target, clients, load) for target in ONE_GPU for clients in (1, 4) for load in LOADS
    }
    assert all((one.errors, one.requests) == (0, 8) and one.tokens_per_s > 0 for one in result.rounds)
    assert kept == list(range(1, len(result.rounds) + 1))
    assert BenchResult.load(tmp_path / RECORD).rounds == result.rounds


def test_bench_of_vllm_itself_with_the_stand_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="these are vLLM's own"):
        run_bench(BenchPlan(check_targets([])), STAND_IN, "24.08", tmp_path, lambda *_: None)
