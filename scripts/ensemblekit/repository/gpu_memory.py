# SPDX-License-Identifier: Apache-2.0
"""What a model needs of a GPU, and how much of it a vLLM engine may take.

`fit` tells from a checkpoint's config.json alone whether an engine would start, counted as vLLM 0.25 counts
(vllm/v1/worker/gpu_worker.py, determine_available_memory): of the share that an engine may take, the weights, what a
full batch needs for a moment, and the CUDA graphs are gone; the rest is cache for keys and values, in blocks of 16
tokens. `notebooks/records/` holds what real starts on a GPU said of the same models.

`memory_fraction` chooses vLLM's `gpu_memory_utilization`, a fraction of all the memory of each GPU: half of it, less
where less is free (vLLM refuses to start where that much is not free), more where the model needs it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblekit.errors import OutOfGpuMemory, ParameterError, RepositoryError
from ensemblekit.gpu import Gpu, visible_gpus
from ensemblekit.repository.read import MAXIMUM_CONFIG_BYTES, read_bytes

__all__ = [
    "Fit",
    "ModelNeed",
    "Shape",
    "fit",
    "gpus_per_engine",
    "memory_fraction",
    "model_need",
    "read_shape",
    "require_divisible_heads",
]

MIB, GIB = 1 << 20, 1 << 30
BLOCK_TOKENS = 16
# vLLM's default for an engine inside a program, as the Triton backend starts it
BATCHED_TOKENS = 2048
# What vLLM finds gone beyond the weights, from starts of six models of 0.1 to 8 billion weights on an H100 (vLLM 0.25):
# libraries and CUDA graphs, once more the embeddings, and some rows of the residual stream for each token of a batch
FIXED_BYTES = 3 * GIB // 10
BATCH_ROWS = 8
# of a weight, or of a key or value; all other types have two
TYPE_BYTES = {"float32": 4.0, "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "int8": 1.0}
GATED = 3  # matrices of a gated MLP: gate, up, down
USUAL_FRACTION = 0.5  # room for a second engine beside the first
CACHE_FRACTION = 0.2  # where a model needs more than that: so much for its cache, if it is free
# What is gone before vLLM looks at what is free: Triton's CUDA context with its pool of 64 MiB, vLLM's own context,
# NCCL's buffers; about 0.6 GiB for each context on an H100.
MARGIN_MIB = 2048
# Activations of the largest batch, the sampler's logits and the CUDA graphs, for models of a few billion weights.
WORKING_MIB = 2048
STEPS = 1000  # fractions are rounded to three digits


@dataclass(frozen=True)
class Shape:
    """What a config.json says of a decoder's size."""

    layers: int
    hidden: int  # width of the residual stream
    heads: int  # attention heads; kv_heads of them have keys and values of their own
    kv_heads: int
    head_dim: int
    intermediate: int  # width of an expert, or of the one MLP
    experts: int  # MLPs per layer, 1 for a dense model
    vocabulary: int
    tied: bool  # whether the input's and the output's embeddings are one
    context: int  # tokens of the longest context
    weight_bytes: float
    value_bytes: float  # bytes of a key or value in the cache

    @property
    def parameters(self) -> int:
        """Number of weights, without the few of norms and biases."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = GATED * self.hidden * self.intermediate * self.experts
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (attention + mlp) + embeddings

    @property
    def cache_bytes_per_token(self) -> float:
        """Bytes of the keys and values of one token, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.value_bytes


@dataclass(frozen=True)
class Fit:
    """The verdict on one engine, in bytes on each of its GPUs."""

    share_bytes: int  # what the engine may take
    weights_bytes: int
    working_bytes: int  # a full batch, the sampler and the CUDA graphs
    cache_bytes_per_token: float  # keys and values of one token
    max_model_len: int  # tokens of the longest request

    @property
    def cache_bytes(self) -> int:
        """What is left for keys and values; negative if nothing is."""
        return self.share_bytes - self.weights_bytes - self.working_bytes

    @property
    def cache_tokens(self) -> int:
        """Tokens that the cache holds, in whole blocks."""
        return max(0, int(self.cache_bytes / (self.cache_bytes_per_token * BLOCK_TOKENS))) * BLOCK_TOKENS

    @property
    def sequences(self) -> float:
        """Requests of the longest kind that the cache holds at once."""
        return self.cache_tokens / (math.ceil(self.max_model_len / BLOCK_TOKENS) * BLOCK_TOKENS)

    @property
    def fits(self) -> bool:
        """Whether vLLM will start: at least one request of the longest kind must have room."""
        return self.sequences >= 1

    @property
    def least_share_bytes(self) -> int:
        """What the engine would have to take for one request of the longest kind."""
        return self.weights_bytes + self.working_bytes + math.ceil(self.cache_bytes_per_token * self.max_model_len)


def read_shape(model: str | Path) -> Shape:
    """Return the shape of a checkpoint from its config.json.

    Raises:
        ParameterError: There is no config.json, it cannot be read, or it does not tell a decoder's size.
    """
    path = Path(model) / "config.json" if Path(model).is_dir() else Path(model)
    try:
        content = json.loads(read_bytes(path, MAXIMUM_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise ParameterError(
            f"read the size of {model}", found=str(error), hint="give a checkpoint's folder, or its config.json"
        ) from error
    try:
        return _shape(content.get("text_config", content), content)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ParameterError(
            f"read the size of {model}",
            found=f"{path} does not say it ({type(error).__name__}: {error})",
            hint="`fit` knows decoders with attention: Llama, Mistral, Mixtral, Qwen, Phi-3 and their like",
        ) from error


def _attention(config: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Return layers, heads, heads with keys and values of their own, and the size of a head; 0 for what is not said."""
    heads = int(config.get("num_attention_heads") or 0)
    size = int(config.get("head_dim") or 0) or (int(config.get("hidden_size") or 0) // heads if heads else 0)
    return int(config.get("num_hidden_layers") or 0), heads, int(config.get("num_key_value_heads") or heads), size


def _shape(config: Mapping[str, Any], outer: Mapping[str, Any]) -> Shape:
    layers, heads, kv_heads, head_dim = _attention(config)
    if not (layers and heads and head_dim):
        raise ValueError("no number of layers or of attention heads")
    experts = int(config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts") or 1)
    width = config.get("moe_intermediate_size") if experts > 1 else None
    kind = str(config.get("dtype") or config.get("torch_dtype") or outer.get("torch_dtype") or "bfloat16")
    value_bytes = TYPE_BYTES.get(kind, 2.0)
    return Shape(
        layers=layers,
        hidden=int(config["hidden_size"]),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=int(width or config["intermediate_size"]),
        experts=experts,
        vocabulary=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", outer.get("tie_word_embeddings", False))),
        context=int(config.get("max_position_embeddings") or 0),
        weight_bytes=_weight_bytes(outer.get("quantization_config") or {}, value_bytes),
        value_bytes=value_bytes,
    )


def _weight_bytes(quantization: Mapping[str, Any], plain: float) -> float:
    """Return the bytes of a weight: of a quantised checkpoint those of its method, plus its scales."""
    method = str(quantization.get("quant_method", ""))
    if method in ("awq", "gptq"):
        return int(quantization.get("bits", 4)) / 8 * 1.06  # a scale and a zero for each 128 weights
    return 1.0 if "fp8" in method or method == "compressed-tensors" else plain


def fit(
    shape: Shape,
    gpu_bytes: int,
    *,
    max_model_len: int | None = None,
    share: float = 0.9,
    gpus: int = 1,
    batched_tokens: int = BATCHED_TOKENS,
    cache_value_bytes: float | None = None,
) -> Fit:
    """Return what an engine needs on each of its GPUs, and what its cache will hold.

    Args:
        shape: The model's.
        gpu_bytes: Memory of one GPU.
        max_model_len: Tokens of the longest request; the model's own context if left out.
        share: vLLM's gpu_memory_utilization.
        gpus: vLLM's tensor_parallel_size.
        batched_tokens: vLLM's max_num_batched_tokens.
        cache_value_bytes: Bytes of a key or value, 1 with kv_cache_dtype fp8; the model's own if left out.

    Raises:
        ParameterError: A number is out of range, or the heads cannot be shared by so many GPUs.
    """
    length = max_model_len or shape.context
    spread = gpus > 0 and shape.heads % gpus == 0
    for holds, attempted, found, hint in (
        (0 < share <= 1, f"give an engine the share {share}", "not above 0 and at most 1", "for example `--share 0.9`"),
        (gpu_bytes > 0, f"use a GPU of {gpu_bytes} bytes", "no memory", "for example `--gpu-memory 24GiB`"),
        (length > 0, f"serve requests of {length} tokens", "no tokens", "for example `--max-model-len 8192`"),
        (
            spread,
            f"spread the model over {gpus} GPUs",
            f"{shape.heads} attention heads",
            "use a divisor of that number",
        ),
    ):
        if not holds:
            raise ParameterError(attempted, found=found, hint=hint)
    per_token = shape.cache_bytes_per_token * (cache_value_bytes or shape.value_bytes) / shape.value_bytes
    return Fit(
        share_bytes=int(gpu_bytes * share),
        weights_bytes=math.ceil(shape.parameters * shape.weight_bytes / gpus),
        working_bytes=_working_bytes(shape, gpus, batched_tokens),
        cache_bytes_per_token=per_token / min(gpus, shape.kv_heads),
        max_model_len=length,
    )


def _working_bytes(shape: Shape, gpus: int, tokens: int) -> int:
    """Return what vLLM finds gone, beyond the weights, after it has run one full batch."""
    embeddings = shape.vocabulary * shape.hidden / gpus
    return FIXED_BYTES + math.ceil((embeddings + BATCH_ROWS * tokens * shape.hidden) * shape.value_bytes)


@dataclass(frozen=True)
class ModelNeed:
    """What one engine needs on each of its GPUs, in MiB."""

    weights_mib: int
    cache_mib: int  # keys and values of one request that fills the context
    working_mib: int = WORKING_MIB  # vLLM's working memory

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
    """Refuse tensor parallelism over a number of GPUs that the attention heads of a checkpoint cannot be shared by.

    Raises:
        RepositoryError: The number of heads is not divisible.
    """
    heads = int(_read_config(folder).get("num_attention_heads") or 0)
    parts = int(arguments.get("tensor_parallel_size") or 1)
    if heads % parts:
        raise RepositoryError(
            f"spread {folder.name} over {parts} GPUs",
            found=f"{heads} attention heads, which cannot be shared by {parts} GPUs",
            hint="use ensemblekit.assets.weights.splittable_checkpoint, another number of GPUs, or replicas",
        )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_bytes(folder / "config.json", MAXIMUM_CONFIG_BYTES))
    except (OSError, ValueError):
        return {}
    return dict(config.get("text_config", config))  # of a model that also sees or hears


def _cache_bytes(config: Mapping[str, Any], arguments: Mapping[str, Any]) -> float:
    """Return the bytes of keys and values of one request that fills the context; 0 for an unknown architecture."""
    layers, _, kv_heads, size = _attention(config)
    context = str(arguments.get("max_model_len") or config.get("max_position_embeddings") or 0)
    kinds = (str(arguments.get(name) or "auto") for name in ("kv_cache_dtype", "dtype"))
    kind = next((kind for kind in kinds if kind != "auto"), "auto")
    return 2 * layers * kv_heads * size * TYPE_BYTES.get(kind, 2.0) * (int(context) if context.isdigit() else 0)


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
