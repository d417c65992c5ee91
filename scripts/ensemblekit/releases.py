# SPDX-License-Identifier: Apache-2.0
"""The release table (`env/releases.toml`) and the flavours a release comes in."""

import tomllib
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from ensemblekit.errors import ParameterError
from ensemblekit.paths import repo_root

__all__ = [
    "FLAVOURS",
    "FLAVOUR_TEXT",
    "DocumentedRelease",
    "Driver",
    "Flavour",
    "Release",
    "backends_of",
    "default_release",
    "driver_for",
    "every_release",
    "get_release",
    "has_ensembles",
    "list_releases",
]

Flavour = Literal["vllm-image", "base-plus-vllm", "custom-build"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
FLAVOUR_TEXT: dict[Flavour, str] = {
    "vllm-image": "the vLLM image as NVIDIA shipped it",
    "base-plus-vllm": "workaround 1: the base image plus the vLLM backend",
    "custom-build": "workaround 2: a custom build with --backend=ensemble",
}


@dataclass(frozen=True, kw_only=True)
class DocumentedRelease:
    """What is documented of a Triton release; all after 24.10 are only that, and none of them was run here."""

    name: str
    triton: str
    vllm: str
    python: str
    cuda: str
    ensemble_in_vllm_image: bool = True


@dataclass(frozen=True, kw_only=True)
class Release(DocumentedRelease):
    """One Triton release that this kit runs, as `env/releases.toml` describes it."""

    wheel: str
    sha256: str
    vllm_image_gb: float
    numpy_2_safe: bool


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The NVIDIA driver that a CUDA version needs."""

    minimum: str
    data_center: list[str]
    tested: str


@cache
def _table() -> dict[str, Any]:
    """Return the file; the tests compare it with these classes, so that no program has to."""
    with (repo_root() / "env" / "releases.toml").open("rb") as file:
        return tomllib.load(file)


@cache
def list_releases() -> tuple[Release, ...]:
    """Return every release of the table, oldest first.

    Raises:
        TypeError: The table has a wrong or missing field.
    """
    return tuple(Release(name=name, **row) for name, row in sorted(_table()["releases"].items()))


@cache
def every_release() -> tuple[DocumentedRelease, ...]:
    """Return the releases that the kit runs and those that are only documented, oldest first.

    Raises:
        TypeError: The table has a wrong or missing field.
    """
    rows = sorted(_table()["documented"].items())
    return (*list_releases(), *(DocumentedRelease(name=name, **row) for name, row in rows))


def backends_of(release: DocumentedRelease, flavour: Flavour) -> frozenset[str] | None:
    """Return all backends of a flavour's image; None for a build of one's own, which may have any.

    >>> sorted(backends_of(get_release("24.08"), "vllm-image"))
    ['python', 'vllm']
    """
    if flavour == "custom-build":
        return None
    images, until = _table()["images"], _table()["last_with"]
    names = {*images["vllm-python-py3"], *(images["py3"] if flavour == "base-plus-vllm" else ())}
    return frozenset(name for name in names if release.name <= until.get(name, release.name))


def default_release() -> str:
    """Return the release the lessons use unless told otherwise."""
    return str(_table()["default"])


def get_release(name: str) -> Release:
    """Return the release called `name`.

    Raises:
        ParameterError: There is no such release in the table.

    >>> get_release("24.08").triton
    '2.49.0'
    """
    for release in list_releases():
        if release.name == name:
            return release
    raise ParameterError(
        f"use Triton release {name!r}",
        found=f"the releases in env/releases.toml are {', '.join(r.name for r in list_releases())}",
        hint="choose one of these, for example `-p RELEASE 24.08` (in quotes inside a notebook)",
    )


def driver_for(release: Release) -> Driver:
    """Return the driver that the CUDA of a release's images needs.

    Raises:
        KeyError: The table has no driver for that CUDA; a test asks for every release.

    >>> driver_for(get_release("24.08")).minimum
    '560'
    """
    return Driver(**_table()["drivers"][".".join(release.cuda.split(".")[:2])])


def has_ensembles(release: DocumentedRelease, flavour: Flavour) -> bool:
    """Return whether `flavour` of `release` can load an ensemble.

    Only the vLLM images up to 24.09 were built without `--backend=ensemble`
    (triton-inference-server/server#7632, vllm_backend#68).

    >>> has_ensembles(get_release("24.08"), "vllm-image")
    False
    >>> has_ensembles(get_release("24.10"), "vllm-image")
    True
    """
    return flavour != "vllm-image" or release.ensemble_in_vllm_image
