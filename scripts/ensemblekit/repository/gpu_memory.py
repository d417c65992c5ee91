# SPDX-License-Identifier: Apache-2.0
"""How much of a GPU a vLLM engine may take: half of it, less where less is free, more where the model needs it.

vLLM's `gpu_memory_utilization` is a fraction of all the memory of each GPU, and vLLM refuses to start where that
much is not free. What it takes holds the weights, the cache of keys and values, and its own working memory.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblekit.errors import OutOfGpuMemory, RepositoryError
from ensemblekit.gpu import Gpu, visible_gpus

__all__ = ["ModelNeed", "gpus_per_engine", "memory_fraction", "model_need", "require_divisible_heads"]

MIB = 2**20
USUAL_FRACTION = 0.5  # room for a second engine beside the first
CACHE_FRACTION = 0.2  # where a model needs more than that: so much for its cache, if it is free
# What is gone before vLLM looks at what is free: Triton's CUDA context with its pool of 64 MiB, vLLM's own context,
# NCCL's buffers; about 0.6 GiB for each context on an H100.
MARGIN_MIB = 2048
# Activations of the largest batch, the sampler's logits and the CUDA graphs, for models of a few billion weights.
WORKING_MIB = 2048
STEPS = 1000  # fractions are rounded to three digits
VALUE_BYTES = {"float32": 4, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}  # of a key or value; all other types have two


@dataclass(frozen=True)
class ModelNeed:
    """What one engine needs on each of its GPUs, in MiB.

    Attributes:
        weights_mib: The weights.
        cache_mib: Keys and values of one request that fills the context.
        working_mib: vLLM's working memory.
    """

    weights_mib: int
    cache_mib: int
    working_mib: int = WORKING_MIB

    @property
    def total_mib(self) -> int:
        """All of it."""
        return self.weights_mib + self.cache_mib + self.working_mib

    def __str__(self) -> str:
        parts = f"weights {self.weights_mib}, one full context {self.cache_mib}, working memory {self.working_mib}"
        return f"{self.total_mib} MiB ({parts})"


def gpus_per_engine(arguments: Mapping[str, Any]) -> int:
    """Return how many GPUs one engine with these arguments runs on.

    >>> gpus_per_engine({"tensor_parallel_size": 2, "pipeline_parallel_size": 2})
    4
    """
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    return math.prod(int(arguments.get(name) or 1) for name in sizes)


def model_need(folder: Path, arguments: Mapping[str, Any]) -> ModelNeed:
    """Return what an engine needs on each of its GPUs; what the folder does not tell counts as nothing.

    Args:
        folder: The checkpoint. A hub id, which is no folder before vLLM has fetched it, tells nothing.
        arguments: vLLM's engine arguments.
    """
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    weights = sum(file.stat().st_size for file in files)
    # each replica of data parallelism holds everything
    shares = gpus_per_engine({**arguments, "data_parallel_size": 1})
    cache = _cache_bytes(_read_config(folder), arguments)
    return ModelNeed(math.ceil(weights / shares / MIB), math.ceil(cache / shares / MIB))


def require_divisible_heads(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Refuse tensor parallelism over a number of GPUs that the model's attention heads cannot be shared by.

    Args:
        folder: The checkpoint; one that does not tell its heads is trusted.
        arguments: vLLM's engine arguments.

    Raises:
        RepositoryError: The number of heads is not divisible.
    """
    heads = int(_read_config(folder).get("num_attention_heads") or 0)
    parts = int(arguments.get("tensor_parallel_size") or 1)
    if heads % parts:
        raise RepositoryError(
            f"spread {folder.name} over {parts} GPUs",
            found=f"{heads} attention heads, which cannot be shared by {parts} GPUs",
            hint="use ensemblekit.assets.padded_heads.splittable_checkpoint, another number of GPUs, or replicas",
        )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return dict(config.get("text_config", config))  # of a model that also sees or hears


def _cache_bytes(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> int:
    """Return the bytes of keys and values of one request that fills the context; 0 for an unknown architecture."""
    heads = int(config.get("num_attention_heads") or 0)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or 0) or (int(config.get("hidden_size") or 0) // heads if heads else 0)
    context = arguments.get("max_model_len") or config.get("max_position_embeddings") or 0
    kind = str(arguments.get("kv_cache_dtype") or "auto")
    kind = str(arguments.get("dtype") or "auto") if kind == "auto" else kind
    per_token = 2 * int(config.get("num_hidden_layers") or 0) * kv_heads * size * VALUE_BYTES.get(kind, 2)
    return per_token * (int(context) if str(context).isdigit() else 0)


def memory_fraction(gpus: Sequence[Gpu], need: ModelNeed) -> float:
    """Return the `gpu_memory_utilization` that fits what is free on every one of these GPUs now.

    Args:
        gpus: Those that the engines will run on; one that does not tell its memory is trusted to have enough.
        need: What an engine needs on each.

    Raises:
        OutOfGpuMemory: On one of them less is free than that.
    """
    known = [(gpu, gpu.total_mib, gpu.free_mib) for gpu in gpus if gpu.total_mib and gpu.free_mib is not None]
    least, most = 0.0, 1.0
    for gpu, total_mib, free_mib in known:
        if need.total_mib > free_mib - MARGIN_MIB:
            raise _too_little(gpu, need)
        least = max(least, math.ceil(need.total_mib / total_mib * STEPS) / STEPS)
        most = min(most, math.floor((free_mib - MARGIN_MIB) / total_mib * STEPS) / STEPS)
    return min(most, max(USUAL_FRACTION, round(least + CACHE_FRACTION, 3)))


def _too_little(gpu: Gpu, need: ModelNeed) -> OutOfGpuMemory:
    wanted_mib = need.total_mib + MARGIN_MIB
    others = [one for one in visible_gpus() if one.uuid != gpu.uuid and (one.free_mib or 0) >= wanted_mib]
    elsewhere = f"CUDA_VISIBLE_DEVICES={others[0].index} has enough free memory; or " if others else ""
    return OutOfGpuMemory(
        f"find room for the model on {gpu}",
        found=f"out of memory: {gpu.free_mib} of {gpu.total_mib} MiB are free, {wanted_mib} MiB are asked for: "
        f"the model {need}, the servers' own contexts {MARGIN_MIB}; held by {gpu.holders}",
        hint=f"{elsewhere}stop what holds the memory, lower max_model_len, use a smaller MODEL, "
        "or set the engine argument gpu_memory_utilization yourself",
    )
