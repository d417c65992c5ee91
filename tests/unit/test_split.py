# SPDX-License-Identifier: Apache-2.0
"""A model with idle attention heads can be split, and says what it said before."""

import json
from pathlib import Path

import pytest

from ensemblekit.assets.weights import ModelSource, splittable_checkpoint
from ensemblekit.errors import ParameterError
from ensemblekit.paths import CACHE_VARIABLE

HEADS, GROUPS = 9, 3  # as SmolLM2-135M


@pytest.fixture(scope="module")
def a_small_llama(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A random model with the head numbers of the pinned one."""
    transformers = pytest.importorskip("transformers", reason="needs the full environment: no transformers here")
    torch = pytest.importorskip("torch", reason="needs the full environment: no torch here")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=72, intermediate_size=64, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=GROUPS, vocab_size=50,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("small-llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return ModelSource(str(folder), str(folder), local=True)


def test_model_with_idle_heads_gives_the_same_logits(
    a_small_llama: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import LlamaForCausalLM

    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    padded = splittable_checkpoint(a_small_llama, 2)

    config = json.loads((Path(padded.engine_model) / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (12, 4)
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    before, after = (
        LlamaForCausalLM.from_pretrained(source.engine_model, dtype=torch.float32)(tokens).logits
        for source in (a_small_llama, padded)
    )
    assert torch.allclose(before, after, atol=1e-5)


def test_model_that_can_be_split_is_used_as_it_is(a_small_llama: ModelSource) -> None:
    assert splittable_checkpoint(a_small_llama, 3) is a_small_llama


def test_hub_id_cannot_be_padded() -> None:
    with pytest.raises(ParameterError, match="Hint: give a checkpoint folder"):
        splittable_checkpoint(ModelSource("owner/name", "owner/name", local=False), 2)
