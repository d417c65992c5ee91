# SPDX-License-Identifier: Apache-2.0
"""The bench: how figures come about, what is asked, and the load generator against a small fake server."""

import json
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ensemblekit.assets.weights import ModelSource
from ensemblekit.bench.plan import WORKLOADS, BenchPlan, Workload, check_targets, check_workloads, prompts, request_body
from ensemblekit.bench.report import HEADER, cross_check_text, describe, plot_bench, plot_latency, rows
from ensemblekit.bench.results import BenchResult, Round, percentile
from ensemblekit.bench.targets import EngineAlone
from ensemblekit.bench.workers import LoadGenerator
from ensemblekit.errors import ParameterError, ServerExited
from ensemblekit.paths import repo_root

RECORDS = tuple(sorted((repo_root() / "notebooks" / "records").glob("*.json")))


def test_figures_of_a_round_come_from_its_answers() -> None:
    answers = [[0.0, 0.1, 1.0, 10, 28], [0.0, 0.3, 2.0, 10, 228], [0.5, 0.5, 0.6, 0, 128]]

    found = Round.of("llm", 2, 1, answers)

    assert (found.requests, found.errors) == (2, 1)
    assert found.tokens_per_s == 128.0  # 28 and 228 tokens from 0 s to 2 s
    assert (found.ttft_ms, found.e2e_p99_ms) == (100.0, 2000.0)
    assert found.itl_ms == pytest.approx(1000 * (0.9 / 27 + 1.7 / 227) / 2, abs=0.01)


def test_round_in_which_all_failed_has_no_speed() -> None:
    assert Round.of("llm", 1, 1, [[0.0, 0.0, 0.1, 0, 128]]).tokens_per_s == 0.0


def test_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.99) == 0.0


def test_prompts_of_two_rounds_share_none() -> None:
    assert not set(prompts(50, 1)) & set(prompts(50, 2))


def test_no_two_rounds_of_any_load_and_target_ask_the_same() -> None:
    plan = BenchPlan(workloads=tuple(WORKLOADS), rounds=3)

    seeds = [
        plan.seed(number, workload, concurrency, target)
        for number in range(plan.rounds + 1)
        for workload in WORKLOADS.values()
        for concurrency in plan.concurrencies
        for target in plan.targets
    ]

    assert len(set(seeds)) == len(seeds)


def a_result(speeds: dict[str, list[float]]) -> BenchResult:
    """A result of one concurrency with the given speeds, warm-up first."""
    rounds = [
        Round(target, 16, number, 64, 0, speed, 10, 20, 30, 40, 0)
        for target, each in speeds.items()
        for number, speed in enumerate(each)
    ]
    plan = {"concurrencies": [16], "max_tokens": 128, "workloads": [Workload().name], "rounds": 3}
    return BenchResult(plan, {"device": "CPU", "cores": 2, "triton": "2.49.0"}, {}, {}, tuple(rounds))


def test_ratio_is_the_median_of_ratios_within_rounds_without_the_warm_up() -> None:
    result = a_result({"vllm-serve": [1, 100, 200, 400], "ensemble": [1000, 110, 200, 300]})

    assert result.ratio("ensemble", "vllm-serve", 16) == 1.0
    assert result.median("ensemble", 16) == 200


def test_rows_have_a_cell_for_each_heading() -> None:
    table = rows(a_result({"vllm-serve": [1, 2, 3], "llm": [1, 2, 3], "ensemble": [1, 2, 3]}))

    assert [len(row) for row in table] == [len(HEADER)] * 3


@pytest.mark.parametrize(
    ("targets", "base", "compared"),
    [
        (("vllm-serve", "llm", "ensemble"), "vllm-serve", 2),
        (("llm", "bls"), "llm", 1),
        (("ensemble", "replicas"), "ensemble", 1),
    ],
)
def test_picture_compares_with_what_was_measured(targets: tuple[str, ...], base: str, compared: int) -> None:
    _speed, ratio = plot_bench(a_result({target: [1, 2, 3] for target in targets})).axes

    assert ratio.get_title(loc="left") == f"Over {base}, same round"
    assert len(ratio.lines) == compared + 1  # and the line at 1


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    result = a_result({"llm": [1, 2, 3]})

    assert BenchResult.load(result.save(tmp_path / "bench.json")) == result


@pytest.mark.parametrize("record", RECORDS, ids=[path.stem for path in RECORDS])
def test_committed_record_can_be_shown(record: Path) -> None:
    result = BenchResult.load(record)

    assert result.machine["device"] in describe(result)
    assert all(one.errors == 0 for one in result.rounds)
    for workload in result.workloads:
        assert plot_bench(result, workload).axes[0].lines
        assert all(len(row) == len(HEADER) for row in rows(result, workload))


def test_record_under_the_names_of_before_is_read_and_saved_under_those_of_now(tmp_path: Path) -> None:
    before = json.loads(RECORDS[0].read_text())

    result = BenchResult.load(RECORDS[0])
    after = json.loads(result.save(tmp_path / "again.json").read_text())

    assert result.plan["workloads"] == before["plan"]["loads"]
    for old, new in zip(before["rounds"], after["rounds"], strict=True):
        assert (old["first_ms"], old["between_ms"], old["whole_ms"]) == (new["ttft_ms"], new["itl_ms"], new["e2e_ms"])
    assert BenchResult.load(tmp_path / "again.json") == result


def test_every_target_is_asked_for_equally_many_tokens() -> None:
    serve = request_body("vllm-serve", "Q", "", 7, Workload())
    llm = request_body("llm", "Q", "<Q>", 7, Workload())
    ensemble = request_body("ensemble", "Q", "", 7, Workload())
    chat = request_body("chat", "Q", "", 7, Workload())

    assert {
        serve["max_tokens"],
        *(json.loads(b["sampling_parameters"])["max_tokens"] for b in (llm, ensemble, chat)),
    } == {7}
    assert chat == ensemble | dict.fromkeys([name for name in chat if name.startswith("return_")], True)
    assert (llm["text_input"], ensemble["chat_input"], serve["messages"][0]["content"]) == ("<Q>", "Q", "Q")


def test_unknown_target_is_refused() -> None:
    with pytest.raises(ParameterError, match="choose one of engine, vllm-serve, llm, ensemble"):
        check_targets(["tgi"])


def test_targets_on_several_gpus_are_measured_only_when_named() -> None:
    assert check_targets([]) == ("engine", "vllm-serve", "llm", "ensemble", "bls")
    assert check_targets(["tensor-parallel", "ensemble"]) == ("ensemble", "tensor-parallel")


def test_loads_are_named_by_protocol_answers_and_temperature() -> None:
    assert check_workloads([]) == ("http whole greedy",)
    assert len(check_workloads(["all"])) == len(WORKLOADS) == 16
    with pytest.raises(ParameterError, match="choose one of http whole greedy"):
        check_workloads(["fast"])


@pytest.mark.parametrize("tokens", [1, 2, 128])
def test_lengths_vary_around_the_mean_and_the_same_for_every_target(tokens: int) -> None:
    plan, varied = BenchPlan(max_tokens=tokens), WORKLOADS["http whole greedy varied"]

    lengths = plan.lengths(varied, 4000, seed=3)

    assert plan.lengths(Workload(), 3, seed=3) == [tokens] * 3
    assert lengths == plan.lengths(varied, 4000, seed=3) != plan.lengths(varied, 4000, seed=4) or tokens == 1
    assert max(1, tokens // 4) == min(lengths)
    assert max(lengths) == max(1, 2 * tokens - max(1, tokens // 4))
    assert sum(lengths) / len(lengths) == pytest.approx(tokens, rel=0.05)


def test_engine_alone_is_not_asked_to_stream_or_over_grpc() -> None:
    plan = BenchPlan()

    assert [name for name, workload in WORKLOADS.items() if plan.measures("engine", workload)] == [
        "http whole greedy",
        "http whole sampled",
    ]
    assert all(plan.measures("llm", workload) for workload in WORKLOADS.values())


def test_figures_of_two_loads_are_kept_apart() -> None:
    both = tuple(
        Round.of("llm", 16, 1, [[0.0, 0.5, 1.0, 64, 64 * more]], workload)
        for more, workload in enumerate(("a", "b"), 1)
    )
    result = BenchResult(
        {"concurrencies": [16], "max_tokens": 64, "workloads": ["a", "b"], "rounds": 1}, {}, {}, {}, both
    )

    assert (result.median("llm", 16), result.median("llm", 16, workload="b")) == (64.0, 128.0)
    assert plot_latency(result, "b").axes[0].lines[0].get_ydata() == [500.0]


def test_cross_check_stands_beside_the_same_load_of_the_bench() -> None:
    rounds = (Round.of("ensemble", 16, 1, [[0.0, 1.0, 1.0, 1, 100]], "grpc whole greedy"),)
    plan = {"concurrencies": [16], "max_tokens": 100, "workloads": ["grpc whole greedy"], "rounds": 1}
    check = {"clients": 16, "load": "grpc whole greedy", "tokens_per_s": 95.0, "report": []}

    text = cross_check_text(BenchResult(plan, {}, {}, {}, rounds, cross_check=check))

    assert text == "perf_analyzer, 16 clients, grpc whole greedy: 95 tokens/s, the bench 100: 0.95 of it"


class FakeServer(ThreadingHTTPServer):
    """Answers after 50 ms, and remembers how many requests it had at once."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.busy, self.most, self.asked, self.lock = 0, 0, list[str](), threading.Lock()


class FakeHandler(BaseHTTPRequestHandler):
    """One request to the fake server."""

    server: FakeServer

    def do_POST(self) -> None:
        with self.server.lock:
            self.server.busy += 1
            self.server.most = max(self.server.most, self.server.busy)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.05)
        with self.server.lock:
            self.server.busy -= 1
            self.server.asked.append(json.loads(body)["q"])
        self.send_response(500 if b"bad" in body else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def a_fake_server() -> Iterator[FakeServer]:
    """The fake server on a free port."""
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_load_generator_sends_all_with_so_many_at_once_to_a_fake_server(a_fake_server: FakeServer) -> None:
    bodies = [{"q": f"question {number}"} for number in range(12)] + [{"q": "bad"}]

    with closing(LoadGenerator(workers=2)) as generator:
        url = f"http://127.0.0.1:{a_fake_server.server_port}/"
        answers = generator.round(url, bodies, range(13), 4, model="llm", protocol="http", stream=False)

    assert sorted(a_fake_server.asked) == sorted(body["q"] for body in bodies)
    assert 2 <= a_fake_server.most <= 4
    assert sum(answer[3] == 0 for answer in answers) == 1
    assert sorted(answer[4] for answer in answers) == list(range(13))
    assert all(answer[2] - answer[0] >= 0.05 for answer in answers)


MUTATIONS = 300
ODD: tuple[Any, ...] = (None, "", "x", -1, 1e308, True, [], {}, [[]], {"a": 1}, float("nan"), 10**400)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of a JSON value: the container and the key."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(min(3, len(value))):
            yield value, key
            yield from _places(value[key])


def test_broken_record_is_a_value_error_and_a_good_one_can_be_described(tmp_path: Path) -> None:
    dice, file = random.Random(12), tmp_path / "record.json"
    good = RECORDS[-1].read_text()
    refused = 0
    for _ in range(MUTATIONS):
        record = json.loads(good)
        container, key = dice.choice(list(_places(record)))
        if dice.random() < 0.2:
            del container[key]
        else:
            container[key] = dice.choice(ODD)
        file.write_text(json.dumps(record))
        try:
            result = BenchResult.load(file)
        except ValueError:
            refused += 1
            continue
        describe(result)
        rows(result)

    assert refused > MUTATIONS / 3


@pytest.mark.parametrize(
    "text",
    [b"", b"[", b"[]", b"7", b"null", b'"x"', b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000, b'{"rounds": 5}', b"{}"],
    ids=["empty", "cut", "list", "number", "null", "text", "bytes", "deep", "deeper", "no-rounds", "no-plan"],
)
def test_file_that_is_no_record_is_a_value_error(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "record.json").write_bytes(text)

    with pytest.raises(ValueError, match=r"."):
        BenchResult.load(tmp_path / "record.json")


def test_half_a_record_is_a_value_error_wherever_it_was_cut(tmp_path: Path) -> None:
    text = RECORDS[-1].read_bytes()
    for end in range(0, len(text) - 2, 997):
        (tmp_path / "record.json").write_bytes(text[:end])
        with pytest.raises(ValueError, match=r"."):
            BenchResult.load(tmp_path / "record.json")


FAKE_VLLM = """
import os, time
class SamplingParams:
    def __init__(self, **given):
        self.given = given
class LLM:
    def __init__(self, **given):
        print("loading", given["model"], flush=True)
    def generate(self, prompts, sampling, use_tqdm):
        if prompts == ["die"]:
            os._exit(3)
        time.sleep(0.01 * sampling.given["max_tokens"])
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineAlone]:
    """The engine alone, in its own process, with a fake in vLLM's place."""
    (tmp_path / "fakes").mkdir()
    (tmp_path / "fakes" / "vllm.py").write_text(FAKE_VLLM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))
    made = EngineAlone(ModelSource("model", "model", local=True), {}, "cpu", tmp_path)
    made.start()
    yield made
    made.stop()
    made.stop()


def test_engine_alone_answers_batch_by_batch_however_long_the_job(engine: EngineAlone) -> None:
    times = engine.generate([["x" * 50_000] * 4, ["b"]], {"max_tokens": 5})
    again = engine.generate([["c"]], {"max_tokens": 5})

    assert [end - begin >= 0.05 for begin, end in times] == [True, True]
    assert times[1][1] <= again[0][0]


def test_engine_alone_that_dies_is_one_clear_error(engine: EngineAlone) -> None:
    with pytest.raises(ServerExited, match="exit code 3"):
        engine.generate([["die"]], {"max_tokens": 1})


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_figures_of_the_readme_are_those_of_the_records(name: str) -> None:
    results = [
        BenchResult.load(repo_root() / "notebooks" / "records" / f"2026-11-28-h200-{record}.json")
        for record in ("three-loads", "llama-1.2b", "llama-5.9b")
    ]
    wanted = [
        [*result.ratios("ensemble", "vllm-serve")[load].values()] for result in results for load in result.workloads
    ]

    rows = re.findall(
        r"^\| [^|]+ \| (\d\.\d\d) \| (\d\.\d\d) \| (\d\.\d\d) \| (\d\.\d\d) \|$", _text(name), re.MULTILINE
    )

    assert [[float(figure) for figure in row] for row in rows] == wanted
    streamed = "http streamed greedy"
    first = [round(results[0].median(target, 256, "ttft_ms", streamed)) for target in ("ensemble", "vllm-serve")]
    assert first == [int(figure) for figure in re.findall(r"(\d+) ms", _text(name))[:2]]


def _text(name: str) -> str:
    return (repo_root() / name).read_text()
