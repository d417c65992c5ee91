# SPDX-License-Identifier: Apache-2.0
"""`fit` against real starts of vLLM on this GPU: models of known shapes with random weights, from a config alone."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ensemblekit.gpu import visible_gpus
from ensemblekit.repository.gpu_memory import GIB, Fit, fit, read_shape
from ensemblekit.repository.stage import ENGINE_ENVIRONMENT

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
START_TIMEOUT_S = 300
TOLERANCE = 0.10
START = """
import asyncio, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

async def start():
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(
        model=sys.argv[1], gpu_memory_utilization=float(sys.argv[2]), max_model_len=int(sys.argv[3]),
        load_format="dummy", skip_tokenizer_init=True,
    ))
    llm.shutdown()

if __name__ == "__main__":
    asyncio.run(start())
"""
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5}
LLAMA |= {"bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu"}
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)


def _config(*sizes: int, tied: bool = False, **more: Any) -> dict[str, Any]:
    shape = dict(zip(SIZES, sizes, strict=True))
    return LLAMA | shape | {"tie_word_embeddings": tied, "max_position_embeddings": 32768} | more


QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
# name: config, share of the GPU in GiB, tokens of the longest request
CASES: dict[str, tuple[dict[str, Any], float, int]] = {
    "135M": (_config(30, 576, 9, 3, 1536, 49152, tied=True), 8, 8192),
    "1.2B": (_config(16, 2048, 32, 8, 8192, 128256, tied=True), 12, 8192),
    "1.5B-qwen": (_config(28, 1536, 12, 2, 8960, 151936, tied=True, **QWEN), 16, 32768),
    "3B": (_config(28, 3072, 24, 8, 8192, 128256, tied=True), 20, 8192),
    "7B": (_config(32, 4096, 32, 8, 14336, 32000), 24, 8192),
    "8B": (_config(32, 4096, 32, 8, 14336, 128256), 40, 8192),
    "13B": (_config(40, 5120, 40, 40, 13824, 32000), 48, 4096),
}


def _start(folder: Path, share: float, max_model_len: int) -> tuple[int, str]:
    command = [sys.executable, "-c", START, str(folder), f"{share:.4f}", str(max_model_len)]
    environment = os.environ | ENGINE_ENVIRONMENT["cuda"]  # as the kit starts it: a bundle brings no flashinfer
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_TIMEOUT_S,
        env=environment,
        check=False,
    )
    return done.returncode, done.stdout


def _estimate(folder: Path, share: float, max_model_len: int) -> Fit:
    return fit(read_shape(folder), (visible_gpus()[0].total_mib or 0) << 20, max_model_len=max_model_len, share=share)


@pytest.mark.parametrize("name", CASES)
def test_estimated_cache_is_that_of_a_real_start(name: str, tmp_path: Path) -> None:
    config, share_gib, length = CASES[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    share = share_gib * GIB / ((visible_gpus()[0].total_mib or 0) << 20)
    estimate = _estimate(tmp_path, share, length)
    code, log = _start(tmp_path, share, length)

    tokens = re.search(r"GPU KV cache size: ([\d,]+) tokens", log)
    assert tokens, log[-3000:]
    real = int(tokens[1].replace(",", ""))
    weights = re.search(r"Model loading took ([\d.]+) GiB", log)
    cache = re.search(r"Available KV cache memory: ([\d.]+) GiB", log)
    facts = [weights[1] if weights else "", cache[1] if cache else ""]
    print(
        f"fit {name}: share {share_gib} GiB; weights {estimate.weights_bytes / GIB:.2f} (real {facts[0]}), cache",
        end=" ",
    )
    print(
        f"{estimate.cache_bytes / GIB:.2f} (real {facts[1]}) GiB, {estimate.cache_tokens} (real {real}) tokens", end=" "
    )
    print(f"{estimate.cache_tokens / real - 1:+.1%}")
    assert estimate.cache_tokens == pytest.approx(real, rel=TOLERANCE)
    assert code == 0


def test_what_does_not_fit_is_refused_by_vllm_too(tmp_path: Path) -> None:
    config, _, length = CASES["7B"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    share = 15.0 * GIB / ((visible_gpus()[0].total_mib or 0) << 20)
    code, log = _start(tmp_path, share, length)

    assert not _estimate(tmp_path, share, length).fits
    assert code != 0
    assert re.search(
        r"KV cache is needed, which is larger|No available memory for the cache blocks", log.replace("\n", " ")
    ), log[-2000:]
