# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that can be split over several GPUs: the same model with idle attention heads added.

Tensor parallelism gives each GPU a share of the attention heads, so their numbers must be divisible by the number of
GPUs. SmolLM2-135M has 9 heads and 3 key-value heads: no way over 2. Heads whose weights are all zero add exactly zero
to every layer's output, so that a model with 12 and 4 gives the same answers, for a third more attention work.
"""

import json
from pathlib import Path

from ensemblekit.assets.store import build_once
from ensemblekit.assets.weights import ModelSource, run_torch
from ensemblekit.errors import ParameterError
from ensemblekit.paths import cache_dir

__all__ = ["heads_for", "splittable_checkpoint"]


def heads_for(parts: int, heads: int, groups: int) -> tuple[int, int]:
    """Return the numbers of attention heads and key-value heads with which a model can be shared by `parts` GPUs.

    Args:
        parts: How many GPUs.
        heads: Attention heads that the model has; a multiple of `groups`.
        groups: Key-value heads that it has, each used by as many attention heads.

    >>> heads_for(2, 9, 3), heads_for(3, 9, 3)
    ((12, 4), (9, 3))
    """
    new_groups = -(-groups // parts) * parts
    return new_groups * (heads // groups), new_groups


def splittable_checkpoint(source: ModelSource, parts: int) -> ModelSource:
    """Return a model whose heads can be shared by `parts` GPUs: the one given if it can be split, else a padded copy.

    Args:
        source: A checkpoint folder of the Llama family.
        parts: How many GPUs share it.

    Raises:
        ParameterError: It has to be padded, and is no local folder.
        KitError: It cannot be padded.
    """
    config = Path(source.engine_model) / "config.json"
    if not source.local:
        raise ParameterError(
            f"split {source.engine_model} over {parts} GPUs", found="a hub id", hint="give a checkpoint folder"
        )
    values = json.loads(config.read_text())
    old = (values["num_attention_heads"], values["num_key_value_heads"])
    new = heads_for(parts, *old)
    if new == old:
        return source
    name = f"{Path(source.engine_model).name}-heads-for-{parts}"

    def pad(draft: Path) -> None:
        run_torch(
            f"add idle heads to {source.engine_model}",
            ["pad", source.engine_model, *map(str, new), str(draft)],
            draft.parent / "padding.log",
            "only models of the Llama family with grouped key-value heads can be padded",
            lambda phase: None,
        )

    folder = build_once(cache_dir() / "checkpoints" / name, pad)
    return ModelSource(str(folder), str(folder), local=True)
