# SPDX-License-Identifier: Apache-2.0
"""The fraction of a GPU fits what is free and what the model needs, or the error says who holds the rest."""

import json
from pathlib import Path
from typing import Any

import pytest

from ensemblekit.errors import OutOfGpuMemory, RepositoryError
from ensemblekit.gpu import Gpu, GpuProcess
from ensemblekit.repository.gpu_memory import (
    MARGIN_MIB,
    ModelNeed,
    gpus_per_engine,
    memory_fraction,
    model_need,
    require_divisible_heads,
)

TOTAL = 81559
SMOLLM2 = {
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576,
    "max_position_embeddings": 8192,
}  # fmt: skip
SMALL = ModelNeed(weights_mib=257, cache_mib=45)


@pytest.fixture(autouse=True)
def no_gpu_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error also looks for another GPU with room; here only those given count."""
    monkeypatch.setenv("PATH", "")


def gpu(free_mib: int | None, total_mib: int | None = TOTAL, **more: Any) -> Gpu:
    return Gpu(0, "GPU-0", "NVIDIA H100 80GB HBM3", total_mib, free_mib, "580.65.06", (9, 0), **more)


@pytest.mark.parametrize(
    ("free_mib", "fraction"),
    [(81008, 0.5), (42900, 0.5), (40000, 0.465), (5000, 0.036)],
    ids=["all-free", "just-half", "half-less-a-margin", "just-enough"],
)
def test_memory_fraction_is_half_or_what_is_free(free_mib: int, fraction: float) -> None:
    assert memory_fraction([gpu(free_mib)], SMALL) == fraction
    assert fraction * TOTAL <= free_mib - MARGIN_MIB or fraction == 0.5


@pytest.mark.parametrize(
    ("weights_mib", "fraction"), [(16_000, 0.5), (30_000, 0.618), (60_000, 0.968)], ids=["small", "medium", "large"]
)
def test_memory_fraction_of_a_large_model_is_what_it_needs_and_room_for_a_cache(
    weights_mib: int, fraction: float
) -> None:
    assert memory_fraction([gpu(81008)], ModelNeed(weights_mib, cache_mib=2000)) == fraction


def test_memory_fraction_of_two_gpus_fits_the_fuller_one() -> None:
    assert memory_fraction([gpu(81008), gpu(20_000)], SMALL) == 0.22


def test_memory_fraction_of_a_gpu_that_tells_nothing_is_half() -> None:
    assert memory_fraction([gpu(None, None)], SMALL) == 0.5
    assert memory_fraction([], SMALL) == 0.5


def test_memory_fraction_with_too_little_free_says_what_was_free_asked_and_held() -> None:
    holders = (GpuProcess("GPU-0", 4242, "python3", 80_100), GpuProcess("GPU-0", 7, "[Not Found]", None))

    with pytest.raises(OutOfGpuMemory) as caught:
        memory_fraction([gpu(1210, processes=holders)], SMALL)

    assert str(caught.value).splitlines() == [
        "Could not find room for the model on GPU 0 (NVIDIA H100 80GB HBM3).",
        "Found: out of memory: 1210 of 81559 MiB are free, 4398 MiB are asked for: the model 2350 MiB (weights 257, "
        "one full context 45, working memory 2048), the servers' own contexts 2048; "
        "held by pid 4242 (python3): 80100 MiB; pid 7 ([Not Found]): memory",
        "Hint: stop what holds the memory, lower max_model_len, use a smaller MODEL, "
        "or set the engine argument gpu_memory_utilization yourself",
    ]


def test_memory_fraction_held_from_outside_says_that_no_process_is_named() -> None:
    with pytest.raises(OutOfGpuMemory, match="held by no process that the driver names here"):
        memory_fraction([gpu(1210)], SMALL)


@pytest.mark.parametrize(
    ("arguments", "cache_mib"),
    [
        ({"max_model_len": 2048, "dtype": "bfloat16"}, 45),
        ({}, 180),
        ({"max_model_len": 2048, "dtype": "float32"}, 90),
        ({"max_model_len": 2048, "kv_cache_dtype": "fp8"}, 23),
        ({"max_model_len": 2048, "tensor_parallel_size": 2}, 23),
        ({"max_model_len": 2048, "data_parallel_size": 2}, 45),
        ({"max_model_len": "auto"}, 0),
    ],
    ids=["two-bytes", "whole-context", "four-bytes", "one-byte", "two-gpus", "two-copies", "unknown-length"],
)
def test_model_need_counts_weights_and_one_full_context(
    tmp_path: Path, arguments: dict[str, Any], cache_mib: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(256 * 2**20)

    need = model_need(tmp_path, arguments)

    shares = arguments.get("tensor_parallel_size", 1)
    assert (need.weights_mib, need.cache_mib) == (256 // shares, cache_mib)


def test_model_need_of_a_hub_id_is_the_working_memory_alone() -> None:
    need = model_need(Path("owner/name"), {"max_model_len": 2048})

    assert need == ModelNeed(0, 0)


def test_require_divisible_heads_refuses_what_vllm_would_refuse_after_its_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))

    require_divisible_heads(tmp_path, {"tensor_parallel_size": 3})
    require_divisible_heads(Path("owner/name"), {"tensor_parallel_size": 2})
    with pytest.raises(RepositoryError, match="9 attention heads, which cannot be shared by 2 GPUs"):
        require_divisible_heads(tmp_path, {"tensor_parallel_size": 2})


def test_gpus_per_engine_multiplies_the_kinds_of_parallelism() -> None:
    assert gpus_per_engine({}) == 1
    assert gpus_per_engine({"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "data_parallel_size": None}) == 4
