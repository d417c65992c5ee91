# SPDX-License-Identifier: Apache-2.0
"""Turn a GGUF file into a plain checkpoint. Run in a process of its own: it needs torch and transformers.

Usage: _convert_gguf.py GGUF_FILE TARGET_FOLDER

Each line on stdout is one phase, for the caller to show as progress.
"""

import json
import sys
from pathlib import Path

MINIMUM_TRANSFORMERS = (5, 17)  # the first with GgufConfig(dequantize=True)


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
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    say("reading the GGUF tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    say("dequantising the GGUF weights")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
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


def say(phase: str) -> None:
    """Report the phase that begins now."""
    sys.stdout.write(f"{phase}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
