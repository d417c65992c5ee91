# SPDX-License-Identifier: Apache-2.0
"""`fit` knows the published sizes of well-known models, and says no where vLLM would refuse to start."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ensemblekit.errors import ParameterError
from ensemblekit.repository.gpu_memory import GIB, fit, read_shape

LLAMA_3_8B = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
LLAMA_3_8B |= {"intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192}
MISTRAL_7B = LLAMA_3_8B | {"vocab_size": 32000, "max_position_embeddings": 32768}
MIXTRAL_8X7B = MISTRAL_7B | {"num_local_experts": 8}
QWEN_2_5_7B = {"num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4}
QWEN_2_5_7B |= {"intermediate_size": 18944, "vocab_size": 152064, "max_position_embeddings": 32768}
SMOLLM2_135M = {"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
SMOLLM2_135M |= {"intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True}


def _folder(tmp_path: Path, config: dict[str, Any]) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        pytest.param(LLAMA_3_8B, 8.03, id="llama-3-8b"),
        pytest.param(MISTRAL_7B, 7.24, id="mistral-7b"),
        pytest.param(MIXTRAL_8X7B, 46.7, id="mixtral-8x7b"),
        pytest.param(QWEN_2_5_7B, 7.62, id="qwen-2.5-7b"),
        pytest.param(SMOLLM2_135M, 0.1345, id="smollm2-135m"),
    ],
)
def test_shape_has_the_published_number_of_parameters(tmp_path: Path, config: dict[str, Any], billions: float) -> None:
    shape = read_shape(_folder(tmp_path, config))

    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_cache_of_llama_3_8b_takes_128_kib_a_token(tmp_path: Path) -> None:
    shape = read_shape(_folder(tmp_path, LLAMA_3_8B))

    assert shape.cache_bytes_per_token == 128 * 1024
    assert fit(shape, 80 * GIB, cache_value_bytes=1.0).cache_bytes_per_token == 64 * 1024
    assert fit(shape, 80 * GIB, gpus=2).cache_bytes_per_token == 64 * 1024


def test_model_fits_on_24_gib_and_not_on_16(tmp_path: Path) -> None:
    shape = read_shape(_folder(tmp_path, LLAMA_3_8B))
    large, small = fit(shape, 24 * GIB), fit(shape, 16 * GIB)

    assert large.fits
    assert not small.fits
    assert small.share_bytes < small.least_share_bytes < large.share_bytes


@pytest.mark.parametrize("broken", ["", "[]", "{}", '{"num_hidden_layers": "many"}', "[" * 100_000])
def test_config_that_does_not_tell_a_size_is_one_clear_error(tmp_path: Path, broken: str) -> None:
    (tmp_path / "config.json").write_text(broken)

    with pytest.raises(ParameterError, match="read the size of"):
        read_shape(tmp_path)


@pytest.mark.parametrize("options", [{"share": 1.5}, {"share": 0}, {"max_model_len": -1}, {"gpus": 3}])
def test_number_out_of_range_is_one_clear_error(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="Hint"):
        fit(read_shape(_folder(tmp_path, LLAMA_3_8B)), 80 * GIB, **options)


def test_command_says_how_many_requests_fit(tmp_path: Path) -> None:
    from ensemblekit.cli.main import app

    folder = str(_folder(tmp_path, LLAMA_3_8B))
    yes = CliRunner().invoke(app, ["fit", folder, "--gpu-memory", "24GiB", "--max-model-len", "4096"])
    no = CliRunner().invoke(app, ["fit", folder, "--gpu-memory", "16GiB"])

    assert (yes.exit_code, no.exit_code) == (0, 1)
    assert yes.output.splitlines()[-1].startswith("fits: ")
    assert no.output.splitlines()[-1].startswith("does not fit: one request of 8192 tokens needs a share of ")
