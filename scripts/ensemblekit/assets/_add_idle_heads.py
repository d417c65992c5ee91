# SPDX-License-Identifier: Apache-2.0
"""Add attention heads of zeros to a checkpoint. Run in a process of its own: it needs torch.

Usage: _add_idle_heads.py ORIGINAL_FOLDER HEADS KEY_VALUE_HEADS TARGET_FOLDER

The new heads stand behind the old ones, whole groups of them, so that each old head keeps its key-value head.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

COPIED = ("*.json", "*.jinja", "*.txt", "*.model")


def pad(original: Path, new_heads: int, new_groups: int, target: Path) -> None:
    """Write a copy of a checkpoint that has so many attention heads and key-value heads.

    Raises:
        KeyError: The checkpoint is not of the Llama family.
    """
    from safetensors.torch import load_file, save_file

    for pattern in COPIED:
        for file in original.glob(pattern):
            shutil.copy2(file, target / file.name)
    config = json.loads((original / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    config |= {"num_attention_heads": new_heads, "num_key_value_heads": new_groups, "head_dim": size}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    rows = {"q_proj": (new_heads - heads) * size, "k_proj": (new_groups - groups) * size}
    rows["v_proj"] = rows["k_proj"]
    padded = {
        name: _padded(tensor, name, rows)
        for file in original.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    save_file(padded, target / "model.safetensors", metadata={"format": "pt"})


def _padded(tensor: Any, name: str, rows: dict[str, int]) -> Any:
    """Return a tensor with rows of zeros below (queries, keys, values) or columns beside it (what mixes the heads)."""
    import torch

    part = name.split(".")[-2] if "." in name else name
    if part in rows:
        shape = (rows[part], *tensor.shape[1:])
        return torch.cat([tensor, tensor.new_zeros(shape)])
    if part == "o_proj" and name.endswith("weight"):
        return torch.cat([tensor, tensor.new_zeros((tensor.shape[0], rows["q_proj"]))], dim=1)
    return tensor


if __name__ == "__main__":
    pad(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
