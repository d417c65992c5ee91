# SPDX-License-Identifier: Apache-2.0
"""The emulated missing flag behaves as a core that was really compiled without it."""

import difflib
import re

import pytest

from ensemblekit.faults.log import read_log
from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from tests.conftest import DATA, START_TIMEOUT_S, ServerMaker
from tests.normal_log import normalise

GENUINE = DATA / "logs" / "genuine-24.08-ensemble-off.log"
# lines that say something of the machine, not of the build: no GPU driver here, none was asked for there
GPU_DRIVER = re.compile(r"pinned_memory_manager\.cc|cuda_memory_manager\.cc|CudaDriverHelper|NVML|DCGM|metrics for GPU")
# options that the kit adds to every command line, so they stand in the table of backends
OF_THE_KIT = re.compile(r'"(?:shm-region-prefix-name|thread-pool-size)":"[^"]*",?')
PARALLEL = re.compile(r"model_lifecycle\.cc|python_be\.cc")  # two models load at once: their order is free
COUNTDOWN = re.compile(r"Timeout N: Found \d+ (live models|model versions)")  # one line a second of waiting

pytestmark = pytest.mark.server


def _comparable(text: str) -> tuple[list[str], list[str]]:
    """Return a log's lines in comparable form, and the ones left out with the reason."""
    kept, ignored = [], []
    for line in normalise(text).splitlines():
        line = OF_THE_KIT.sub("", line).strip()
        if not line or line.startswith("rc "):
            continue
        if GPU_DRIVER.search(line):
            ignored.append(f"GPU driver: {line}")
        else:
            kept.append(line)
    return kept, ignored


def _sorted_loads(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the lines in order without those of parallel loads, and those, sorted."""
    parallel = sorted(line for line in lines if PARALLEL.search(line))
    return [line for line in lines if not PARALLEL.search(line) and not COUNTDOWN.search(line)], parallel


def test_emulated_flag_gives_the_log_of_the_genuine_build(
    make_server: ServerMaker, report_repository: object, capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_server(report_repository, flavour="vllm-image")  # type: ignore[arg-type]
    outcome = server.attempt_start(START_TIMEOUT_S)

    assert outcome.poll_errors == (ENSEMBLE_REFUSED,)
    assert (outcome.kind, outcome.exit_code) == ("exited", 1)
    ours, ignored = _comparable(read_log(server.log_path))
    genuine, ignored_there = _comparable(GENUINE.read_text())
    (ours_order, ours_loads), (genuine_order, genuine_loads) = _sorted_loads(ours), _sorted_loads(genuine)
    with capsys.disabled():
        print(
            "\nnot compared:",
            *ignored,
            *ignored_there,
            "the order of parallel loads",
            "countdown lines",
            sep="\n  ",
        )
    difference = list(difflib.unified_diff(genuine_order, ours_order, "genuine", "emulated", lineterm="", n=0))
    assert not difference, "\n".join(difference)
    assert ours_loads == genuine_loads
    assert f'model_repository_manager.cc:1460] "{ENSEMBLE_REFUSED}"' in "\n".join(genuine)
