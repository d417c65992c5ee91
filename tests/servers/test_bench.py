# SPDX-License-Identifier: Apache-2.0
"""The bench on a real server with the stand-in for vLLM: Triton's own work, in seconds."""

import shutil
from pathlib import Path

import pytest

from ensemblekit.bench.plan import SUBJECTS, BenchPlan, check_targets, check_workloads, prompts
from ensemblekit.bench.results import BenchResult
from ensemblekit.bench.run import ONE_GPU, RECORD, STAND_IN, STAND_IN_WORDS, run_bench
from ensemblekit.clients.grpc import ask
from ensemblekit.errors import ParameterError
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import TritonServer

pytestmark = pytest.mark.server
WORKLOADS = ("http whole greedy", "http streamed greedy")


def test_bench_asks_every_target_with_every_load_and_keeps_what_it_has_on_the_way(tmp_path: Path) -> None:
    plan = BenchPlan(
        ONE_GPU, (1, 4), rounds=1, max_tokens=1, workloads=check_workloads(WORKLOADS), requests_per_client=2
    )
    kept = list[int]()

    def look(text: str, done: int, total: int) -> None:
        if total and done:
            kept.append(len(BenchResult.load(tmp_path / RECORD).rounds))

    result = run_bench(plan, STAND_IN, "24.08", tmp_path, look)

    print("\n".join(f"{one.workload}: {one.target} x {one.concurrency}: {one.tokens_per_s}/s" for one in result.rounds))
    assert {(one.target, one.concurrency, one.workload) for one in result.rounds} == {
        (target, clients, workload) for target in ONE_GPU for clients in (1, 4) for workload in WORKLOADS
    }
    assert all((one.errors, one.requests) == (0, 8) and one.tokens_per_s > 0 for one in result.rounds)
    assert kept == list(range(1, len(result.rounds) + 1))
    assert BenchResult.load(tmp_path / RECORD).rounds == result.rounds


def test_bench_of_vllm_itself_with_the_stand_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="these are vLLM's own"):
        run_bench(BenchPlan(check_targets([])), STAND_IN, "24.08", tmp_path, lambda *_: None)


@pytest.mark.parametrize(
    ("tokens", "workload", "hint"),
    [(8, "http whole greedy", "--max-tokens 7"), (5, "http whole greedy varied", "3, or less")],
)
def test_more_tokens_than_the_stand_in_says_words_are_refused(
    tmp_path: Path, tokens: int, workload: str, hint: str
) -> None:
    with pytest.raises(ParameterError, match=rf"its shortest answer has 7 words[\s\S]*{hint}"):
        run_bench(
            BenchPlan(ONE_GPU, max_tokens=tokens, workloads=(workload,)), STAND_IN, "24.08", tmp_path, lambda *_: None
        )


def test_stand_in_says_as_many_words_as_the_bench_counts(tmp_path: Path) -> None:
    repository = stage_repository(tmp_path / "models", source=None, device="cpu")
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path)
    with TritonServer(installation, repository.path, tmp_path, environment=repository.environment) as server:
        asked = prompts(len(SUBJECTS), 1)
        texts = [ask(server, question, sampling_parameters={"max_tokens": 100}).text for question in asked]

    assert min(len(text.split()) for text in texts) == STAND_IN_WORDS


def test_replicas_and_servers_of_a_busy_stand_in_answer_more_and_the_same(tmp_path: Path) -> None:
    spread = ("replicas", "servers") if shutil.which("nginx", path="/usr/sbin:/usr/bin") else ("replicas",)
    plan = BenchPlan(("ensemble", *spread), (8,), rounds=1, max_tokens=4)

    result = run_bench(plan, STAND_IN, "24.08", tmp_path, lambda *_: None, gpus=2, stand_in_token_s=0.005)

    print({name: result.median(name, 8) for name in result.plan["targets"]})
    assert result.median("ensemble", 8) <= 200  # one at a time, 5 ms a word
    assert all(result.median(way, 8) > 1.3 * result.median("ensemble", 8) for way in spread)
    assert [*result.answers.values()] == [["(stand-in) You asked: What is the capital of France?"]] * (1 + len(spread))
