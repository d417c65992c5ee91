# SPDX-License-Identifier: Apache-2.0
"""Will a model fit? What vLLM will need of a GPU for it, from the checkpoint's config.json alone.

Counted as vLLM 0.25 counts (vllm/v1/worker/gpu_worker.py, determine_available_memory): of the share that an engine may
take, the weights, what a full batch needs for a moment, and the CUDA graphs are gone; the rest is cache for keys and
values, in blocks of 16 tokens. `notebooks/records/` holds what real starts on a GPU said of the same models.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblekit.errors import ParameterError

__all__ = ["Fit", "Shape", "fit", "read_shape"]

GIB = 1 << 30
BLOCK_TOKENS = 16
# vLLM's default for an engine inside a program, as the Triton backend starts it
BATCHED_TOKENS = 2048
# What vLLM finds gone beyond the weights, from starts of six models of 0.1 to 8 billion weights on an H100 (vLLM 0.25):
# libraries and CUDA graphs, once more the embeddings, and some rows of the residual stream for each token of a batch
FIXED_BYTES = 3 * GIB // 10
BATCH_ROWS = 8
TYPE_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "fp8": 1.0, "int8": 1.0}
GATED = 3  # matrices of a gated MLP: gate, up, down
FILES_TOO_LARGE = 1 << 24  # bytes; a config.json has some thousand


@dataclass(frozen=True)
class Shape:
    """What a config.json says of a decoder's size.

    Attributes:
        layers: Number of layers.
        hidden: Width of the residual stream.
        heads: Attention heads; kv_heads of them have keys and values of their own.
        kv_heads: Heads with keys and values.
        head_dim: Size of a head.
        intermediate: Width of an expert, or of the one MLP.
        experts: MLPs per layer, 1 for a dense model.
        vocabulary: Tokens known.
        tied: Whether the input's and the output's embeddings are one.
        context: Tokens of the longest context.
        weight_bytes: Bytes of a weight.
        value_bytes: Bytes of a key or value in the cache.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    experts: int
    vocabulary: int
    tied: bool
    context: int
    weight_bytes: float
    value_bytes: float

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
    """The verdict on one engine, in bytes on each of its GPUs.

    Attributes:
        share_bytes: What the engine may take.
        weights_bytes: The weights.
        working_bytes: A full batch, the sampler and the CUDA graphs.
        cache_bytes_per_token: Keys and values of one token.
        max_model_len: Tokens of the longest request.
    """

    share_bytes: int
    weights_bytes: int
    working_bytes: int
    cache_bytes_per_token: float
    max_model_len: int

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

    Args:
        model: The checkpoint's folder, or the file.

    Raises:
        ParameterError: There is no config.json, it cannot be read, or it does not tell a decoder's size.
    """
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    try:
        if not path.is_file() or path.stat().st_size > FILES_TOO_LARGE:
            raise FileNotFoundError(f"no config.json at {path}")
        content = json.loads(path.read_text())
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


def _shape(config: Mapping[str, Any], outer: Mapping[str, Any]) -> Shape:
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    experts = int(config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts") or 1)
    width = config.get("moe_intermediate_size") if experts > 1 else None
    kind = str(config.get("dtype") or config.get("torch_dtype") or outer.get("torch_dtype") or "bfloat16")
    value_bytes = TYPE_BYTES.get(kind, 2.0)
    return Shape(
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
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
    _require(
        0 < share <= 1, f"give an engine the share {share}", "not above 0 and at most 1", "for example `--share 0.9`"
    )
    _require(gpu_bytes > 0, f"use a GPU of {gpu_bytes} bytes", "no memory", "for example `--gpu-memory 24GiB`")
    _require(length > 0, f"serve requests of {length} tokens", "no tokens", "for example `--max-model-len 8192`")
    _require(
        gpus > 0 and shape.heads % gpus == 0,
        f"spread the model over {gpus} GPUs",
        f"{shape.heads} attention heads cannot be shared by so many",
        "use a divisor of the number of heads",
    )
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


def _require(holds: bool, attempted: str, found: str, hint: str) -> None:
    if not holds:
        raise ParameterError(attempted, found=found, hint=hint)
