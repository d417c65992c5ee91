# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit fit`: will a model fit on a GPU, before anything is loaded?"""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ensemblekit.errors import ParameterError

if TYPE_CHECKING:
    from ensemblekit.repository.fit import Fit, Shape

__all__ = ["fit"]

EXIT_TOO_LARGE = 1
GIB = 1 << 30


def fit(
    model: Annotated[str, typer.Argument(help="A checkpoint's folder, or its config.json.")],
    gpu_memory: Annotated[str, typer.Option(help="Memory of one GPU, for example 24GiB.")],
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the longest request (default: the model's context).")
    ] = None,
    share: Annotated[float, typer.Option(help="vLLM's gpu_memory_utilization.")] = 0.9,
    gpus: Annotated[int, typer.Option(min=1, help="vLLM's tensor_parallel_size.")] = 1,
    fp8_cache: Annotated[
        bool, typer.Option("--fp8-cache", help="Keys and values of one byte (kv_cache_dtype fp8).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Will this model fit? Weights, cache per token, requests at once; exit code 0: yes, 1: no."""
    from ensemblekit.repository.fit import fit as estimate
    from ensemblekit.repository.fit import read_shape

    shape = read_shape(model)
    found = estimate(
        shape,
        _bytes(gpu_memory),
        max_model_len=max_model_len,
        share=share,
        gpus=gpus,
        cache_value_bytes=1.0 if fp8_cache else None,
    )
    typer.echo(json.dumps(_numbers(shape, found), indent=2) if as_json else _text(shape, found))
    raise typer.Exit(0 if found.fits else EXIT_TOO_LARGE)


def _bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError as error:
        raise ParameterError(
            f"use a GPU with {text!r}", found="no size", hint="for example `--gpu-memory 24GiB`"
        ) from error


def _numbers(shape: "Shape", found: "Fit") -> dict[str, float | bool]:
    return {
        "fits": found.fits,
        "parameters": shape.parameters,
        "share_bytes": found.share_bytes,
        "weights_bytes": found.weights_bytes,
        "working_bytes": found.working_bytes,
        "cache_bytes": found.cache_bytes,
        "cache_bytes_per_token": found.cache_bytes_per_token,
        "cache_tokens": found.cache_tokens,
        "max_model_len": found.max_model_len,
        "sequences_at_once": round(found.sequences, 2),
        "least_share_bytes": found.least_share_bytes,
    }


def _text(shape: "Shape", found: "Fit") -> str:
    length, per_token = found.max_model_len, f"{found.cache_bytes_per_token / 1024:.1f} KiB"
    if found.fits:
        last = f"fits: {found.sequences:.1f} requests of {length} tokens at once"
    else:
        least = found.least_share_bytes / GIB
        last = f"does not fit: one request of {length} tokens needs a share of {least:.1f} GiB"
    rows = {
        "parameters": f"{shape.parameters / 1e9:.2f} billion",
        "the engine's share": f"{found.share_bytes / GIB:.1f} GiB",
        "weights": f"{found.weights_bytes / GIB:.1f} GiB",
        "working memory": f"{found.working_bytes / GIB:.1f} GiB, an estimate",
        "cache": f"{max(0, found.cache_bytes) / GIB:.1f} GiB: {found.cache_tokens} tokens of {per_token}",
    }
    return "\n".join([*(f"{name:<19} {value}" for name, value in rows.items()), last])
