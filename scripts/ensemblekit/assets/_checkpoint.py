# SPDX-License-Identifier: Apache-2.0
"""Make a checkpoint. Run in a process of its own: it needs torch and transformers.

Usage: _checkpoint.py convert GGUF_FILE TARGET_FOLDER
       _checkpoint.py pad ORIGINAL_FOLDER HEADS KEY_VALUE_HEADS TARGET_FOLDER

Each line on stdout is one phase, for the caller to show as progress.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

MINIMUM_TRANSFORMERS = (5, 17)  # the first with GgufConfig(dequantize=True)
COPIED = ("*.json", "*.jinja", "*.txt", "*.model")


def convert(gguf: Path, target: Path) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer of a GGUF file into a folder.

    Raises:
        SystemExit: The installed transformers is too old.
        Exception: Whatever transformers raises about the file.
    """
    say("importing torch and transformers")
    # gguf imports mistral_common if it can: seconds of work, and an error where that is only half installed
    sys.modules["mistral_common"] = None  # type: ignore[assignment]
    import torch
    import transformers

    found = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if found < MINIMUM_TRANSFORMERS:
        raise SystemExit(f"transformers {transformers.__version__} is too old, 5.17 or later is needed")
    place, quantization = gguf.parent, transformers.GgufConfig(dequantize=True)
    say("reading the GGUF tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=gguf.name)
    say("dequantising the GGUF weights")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        place, gguf_file=gguf.name, quantization_config=quantization, dtype=torch.bfloat16
    )
    say("writing the checkpoint")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    add_older_names(target)


def add_older_names(target: Path) -> None:
    """Say again what transformers 5 wrote, under the names of 4.x: the images of 2024 hold 4.45 at most.

    Without them 4.x knows neither the tokenizer's class nor its chat template, and takes the base of the
    rotary embedding for 10000 without a word: the model then answers nonsense.

    Raises:
        OSError: A file is missing.
        KeyError: The configuration has no rotary embedding.
    """
    config = json.loads((target / "config.json").read_text())
    config |= {"rope_theta": config["rope_parameters"]["rope_theta"], "torch_dtype": config["dtype"]}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = json.loads((target / "tokenizer_config.json").read_text())
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer["chat_template"] = (target / "chat_template.jinja").read_text()
    tokenizer["model_input_names"] = ["input_ids", "attention_mask"]
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")


def pad(original: Path, new_heads: int, new_groups: int, target: Path) -> None:
    """Write a copy of a checkpoint that has so many attention heads and key-value heads.

    The new heads are all zero and stand behind the old ones, whole groups of them, so that each old head keeps its
    key-value head.

    Raises:
        KeyError: The checkpoint is not of the Llama family.
    """
    from safetensors.torch import load_file, save_file

    say("adding idle heads")
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
        return torch.cat([tensor, tensor.new_zeros((rows[part], *tensor.shape[1:]))])
    if part == "o_proj" and name.endswith("weight"):
        return torch.cat([tensor, tensor.new_zeros((tensor.shape[0], rows["q_proj"]))], dim=1)
    return tensor


def say(phase: str) -> None:
    """Report the phase that begins now."""
    sys.stdout.write(f"{phase}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        pad(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
