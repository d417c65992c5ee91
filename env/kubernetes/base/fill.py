# SPDX-License-Identifier: Apache-2.0
"""Init container: put the model repository on the volume, whole or not at all; what another pod has put there stays.

REPOSITORY names its folder. MODEL is a folder or hub id for vLLM; without it the Python stand-in is `llm`. LIMITS are the
largest sampling parameters that `preprocess` lets through, as JSON.
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
        return "%s is there already" % target
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=str(target.parent)))
    ours = shutil.ignore_patterns("__pycache__", "bls")
    shutil.copytree(str(KIT / "model_repo"), str(draft / "new"), ignore=ours)
    choose_engine(draft / "new" / "llm", os.environ.get("MODEL", ""))
    limit(draft / "new" / "preprocess" / "config.pbtxt", os.environ.get("LIMITS", "{}"))
    try:
        (draft / "new").rename(target)  # in one step: a server never sees half of it
    except OSError:
        if not target.is_dir():
            raise
        return "another pod has just put %s there" % target
    finally:
        shutil.rmtree(str(draft))
    return "%s: %s" % (target, ", ".join(sorted(model.name for model in target.iterdir())))


def choose_engine(llm: Path, model: str) -> None:
    """Name the weights to vLLM, or put the stand-in in its place."""
    if not model:
        shutil.rmtree(str(llm))
        shutil.copytree(str(KIT / "env" / "stand_in_llm"), str(llm))
        return
    arguments = llm / "1" / "model.json"
    arguments.write_text(json.dumps(dict(json.loads(arguments.read_text()), model=model)))


def limit(config: Path, limits: str) -> None:
    """Write the largest sampling parameters into the config of `preprocess`."""
    before, name, after = config.read_text().partition('key: "limits"')
    value = "string_value: %s" % json.dumps(json.dumps(json.loads(limits)))
    config.write_text(before + name + after.replace('string_value: "{}"', value, 1))


if __name__ == "__main__":
    print(main(VOLUME / os.environ["REPOSITORY"]))
