# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit fit`: will a model fit on a GPU, before anything is loaded?"""

import json
from typing import TYPE_CHECKING, Any

import click

from ensemblekit.cli.options import EXIT_FAILED, SIZE, WORD, as_json

if TYPE_CHECKING:
    from ensemblekit.repository.gpu_memory import Fit, Shape

__all__ = ["fit"]

GIB = 1 << 30


@click.command()
@click.argument("model", type=WORD)
@click.option("--gpu-memory", type=SIZE, required=True, help="Memory of one GPU, for example 24GiB.")
@click.option(
    "--max-model-len", type=click.IntRange(1), help="Tokens of the longest request (default: the model's context)."
)
@click.option("--share", type=click.FloatRange(0, 1), default=0.9, help="vLLM's gpu_memory_utilization.")
@click.option("--gpus", type=click.IntRange(1), default=1, help="vLLM's tensor_parallel_size.")
@click.option("--fp8-cache", is_flag=True, help="Keys and values of one byte (kv_cache_dtype fp8).")
@as_json
@click.pass_context
def fit(context: click.Context, /, model: str, gpu_memory: int, fp8_cache: bool, as_json: bool, **options: Any) -> None:
    """Will this model fit? Weights, cache per token, requests at once; exit code 0: yes, 1: no.

    MODEL is a checkpoint's folder, or its config.json.
    """
    from ensemblekit.repository.gpu_memory import fit as estimate
    from ensemblekit.repository.gpu_memory import read_shape

    shape = read_shape(model)
    found = estimate(shape, gpu_memory, cache_value_bytes=1.0 if fp8_cache else None, **options)
    click.echo(json.dumps(_numbers(shape, found), indent=2) if as_json else _text(shape, found))
    context.exit(0 if found.fits else EXIT_FAILED)


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
