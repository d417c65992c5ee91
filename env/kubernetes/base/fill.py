# SPDX-License-Identifier: Apache-2.0
"""Init container: put the model repository on the volume, whole or not at all; what another pod has put there stays.

REPOSITORY names its folder. MODEL is a folder or hub id for vLLM; without it the Python stand-in is `llm`. LIMITS are
the largest sampling parameters that `preprocess` lets through, as JSON.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

KIT, VOLUME = Path("/kit"), Path("/models")


def main(target: Path) -> str:
    """Fill the target and return what was done."""
    if target.is_dir():
        return f"{target} is there already"
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
    new = draft / "new"
    try:
        shutil.copytree(KIT / "model_repo", new, ignore=shutil.ignore_patterns("__pycache__", "bls"))
        choose_engine(new / "llm", os.environ.get("MODEL", ""))
        limit(new / "preprocess" / "config.pbtxt", os.environ.get("LIMITS", "{}"))
        new.rename(target)  # in one step: a server never sees half of it
    except OSError:
        if not target.is_dir():
            raise
        return f"another pod has just put {target} there"
    finally:
        shutil.rmtree(draft)
    return f"{target}: {', '.join(sorted(model.name for model in target.iterdir()))}"


def choose_engine(llm: Path, model: str) -> None:
    """Name the weights to vLLM, or put the stand-in in its place."""
    if not model:
        shutil.rmtree(llm)
        shutil.copytree(KIT / "env" / "stand_in_llm", llm, ignore=shutil.ignore_patterns("__pycache__"))
        return
    arguments = llm / "1" / "model.json"
    arguments.write_text(json.dumps(json.loads(arguments.read_text()) | {"model": model}))


def limit(config: Path, limits: str) -> None:
    """Write the largest sampling parameters into the config of `preprocess`."""
    before, name, after = config.read_text().partition('key: "limits"')
    value = f"string_value: {json.dumps(json.dumps(json.loads(limits)))}"
    config.write_text(before + name + after.replace('string_value: "{}"', value, 1))


if __name__ == "__main__":
    print(main(VOLUME / os.environ["REPOSITORY"]))
