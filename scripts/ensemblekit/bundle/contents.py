# SPDX-License-Identifier: Apache-2.0
"""What goes into a bundle: the locked packages that the other machine lacks, server wheels, weights, the kit."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ensemblekit.errors import ParameterError
from ensemblekit.paths import repo_root

__all__ = ["LEFT_OUT", "Choice", "Device", "Pin", "choose", "layers_for", "read_have", "read_pins"]

Device = Literal["quick", "cpu", "cuda"]
PIN = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,-]+\])?==(?P<version>[^\s;]+)")
TORCH_NOTE = re.compile(r"^# torch: (?P<pin>\S+)", re.MULTILINE)
# What vLLM names and text generation with a plain bf16 model never imports; together 1 GB. Without flashinfer the
# kit starts vLLM with VLLM_USE_FLASHINFER_SAMPLER=0.
LEFT_OUT: dict[str, str] = {
    "cuda-tile": "kernels of flashinfer",
    "flashinfer-cubin": "kernels of flashinfer, 458 MB",
    "flashinfer-python": "FlashAttention comes with vLLM",
    "nvidia-cuda-cccl": "headers for kernels compiled by flashinfer",
    "nvidia-cuda-crt": "headers for kernels compiled by flashinfer",
    "nvidia-cuda-nvcc": "compiler for kernels of flashinfer",
    "nvidia-cuda-tileiras": "compiler for cuda-tile",
    "nvidia-cudnn-frontend": "attention of flashinfer",
    "nvidia-cutlass-dsl": "kernels of flashinfer and quack",
    "nvidia-cutlass-dsl-libs-base": "kernels of flashinfer and quack",
    "nvidia-cutlass-dsl-libs-cu13": "kernels of flashinfer and quack",
    "nvidia-nvvm": "compiler for cutlass-dsl",
    "pynvvideocodec": "video input",
    "quack-kernels": "kernels for mixtures of experts",
    "tilelang": "kernels for sparse attention",
    "tokenspeed-mla": "latent attention",
    "tokenspeed-triton": "latent attention",
    "torchcodec": "sound and film input",
    "z3-solver": "tilelang",
}


@dataclass(frozen=True)
class Pin:
    """One exact requirement of a lock file, with its name normalised."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Choice:
    """The pins of the locks, by what becomes of them.

    Attributes:
        carried: To be brought along.
        present: Already there in the locked version.
        left_out: Never imported on the way from text to text.
    """

    carried: tuple[Pin, ...]
    present: tuple[Pin, ...]
    left_out: tuple[Pin, ...]


def normal(name: str) -> str:
    """Return a project's name as package indexes compare it.

    >>> normal("Ruamel_Yaml.clib")
    'ruamel-yaml-clib'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def layers_for(device: Device, *, lab: bool = True) -> tuple[str, ...]:
    """Return the lock files of an environment, without suffix; vLLM needs packages of JupyterLab's."""
    if device == "quick":
        return ("base", "lab") if lab else ("base",)
    return ("base", "lab", device)


def read_pins(layers: Sequence[str], locks: Path | None = None) -> tuple[Pin, ...]:
    """Return the pins of some lock files, and the torch that their comments name, in order.

    Args:
        layers: Names of lock files.
        locks: Their folder, by default `env/locks`.

    Raises:
        OSError: A lock file cannot be read.
    """
    pins = list[Pin]()
    for layer in layers:
        text = ((locks or repo_root() / "env" / "locks") / f"{layer}.txt").read_text()
        lines = [match["pin"] for match in TORCH_NOTE.finditer(text)]
        lines += [line for line in text.splitlines() if line and not line.startswith("#")]
        pins += [Pin(normal(match["name"]), match["version"]) for match in map(PIN.match, lines) if match]
    return tuple(pins)


def read_have(file: Path) -> dict[str, str]:
    """Return versions by name from what `pip list --format=json` or `pip freeze` printed on the other machine.

    Raises:
        ParameterError: The file is neither.
    """
    text = file.read_text() if file.is_file() else ""
    try:
        return {normal(entry["name"]): str(entry["version"]) for entry in json.loads(text)}
    except (ValueError, TypeError, KeyError):
        found = {normal(match["name"]): match["version"] for match in map(PIN.match, text.splitlines()) if match}
    if not found:
        raise ParameterError(
            f"read what the other machine has from {file}",
            found="no such file" if not file.is_file() else "no package in it",
            hint="make it there with `python3 -m pip list --format=json > have.json`",
        )
    return found


def choose(pins: Sequence[Pin], have: Mapping[str, str], left_out: Collection[str]) -> Choice:
    """Return what to carry: what is not there in the locked version, and is not left out.

    A local version (`2.11.0+cu130`) counts as the version it builds.
    """
    out = tuple(pin for pin in pins if pin.name in left_out)
    present = tuple(pin for pin in pins if pin not in out and have.get(pin.name, "").partition("+")[0] == pin.version)
    carried = tuple(pin for pin in pins if pin not in out and pin not in present)
    return Choice(carried, present, out)
