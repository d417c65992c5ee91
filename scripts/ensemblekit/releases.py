# SPDX-License-Identifier: Apache-2.0
"""The release table (`env/releases.toml`) and the flavours a release comes in."""

import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

from ensemblekit.errors import ParameterError
from ensemblekit.paths import repo_root

__all__ = [
    "FLAVOURS",
    "DocumentedRelease",
    "Driver",
    "Flavour",
    "Release",
    "backends_of",
    "default_release",
    "documented_note",
    "documented_releases",
    "driver_for",
    "every_release",
    "get_release",
    "has_ensembles",
    "known_release",
    "list_releases",
    "minimum_driver",
    "release_of_image",
]

Flavour = Literal["vllm-image", "base-plus-vllm", "custom-build"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)


@dataclass(frozen=True, kw_only=True)
class DocumentedRelease:
    """What is documented of a Triton release; what is not known is empty. Those after 24.10 were not run here.

    Attributes:
        tested_driver: The NVIDIA driver beside the image in NVIDIA's compatibility matrix.
        vllm_image_gb: Size of NVIDIA's vLLM image, in GB.
        source: Where the facts come from: keys of the table's `sources`, or addresses.
    """

    name: str
    triton: str = ""
    vllm: str = ""
    python: str = ""
    cuda: str = ""
    tested_driver: str = ""
    vllm_image_gb: float | None = None
    ensemble_in_vllm_image: bool = True
    source: list[str] = field(hash=False)

    @property
    def links(self) -> tuple[str, ...]:
        """The addresses of the sources."""
        found = (_table()["sources"].get(key, key) for key in self.source)
        # NVIDIA's notes are at rel-24-08.html, the branches of the repositories are r24.08
        dashed = self.name.replace(".", "-")
        return tuple(link.replace("rel-{release}", f"rel-{dashed}").format(release=self.name) for link in found)


@dataclass(frozen=True, kw_only=True)
class Release(DocumentedRelease):
    """One Triton release that this kit runs, as `env/releases.toml` describes it."""

    wheel: str
    sha256: str
    vllm_image_gb: float
    numpy_2_safe: bool


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The NVIDIA driver that a CUDA version needs, and the releases whose notes say so."""

    minimum: str
    data_center: list[str]
    source: list[str]


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
def documented_releases() -> tuple[DocumentedRelease, ...]:
    """Return the releases that are only documented and were not run here, oldest first.

    Raises:
        TypeError: The table has a wrong or missing field.
    """
    return tuple(DocumentedRelease(name=name, **row) for name, row in sorted(_table()["documented"].items()))


def every_release() -> tuple[DocumentedRelease, ...]:
    """Return the releases that the kit runs and those that are only documented, oldest first.

    Raises:
        TypeError: The table has a wrong or missing field.
    """
    return (*list_releases(), *documented_releases())


def _documented(name: str) -> DocumentedRelease | None:
    return next((row for row in documented_releases() if row.name == name), None)


def known_release(name: str) -> DocumentedRelease:
    """Return the release called `name`, even if it is only documented.

    Raises:
        ParameterError: There is no such release in the table.

    >>> known_release("25.03").vllm
    '0.7.3'
    """
    return _documented(name) or get_release(name)


def release_of_image(image: str) -> str:
    """Return the release in the tag of an image that is named as NVIDIA names them, empty if the table has none such.

    >>> release_of_image("nvcr.io/nvidia/tritonserver:25.03-vllm-python-py3"), release_of_image("localhost/x:1")
    ('25.03', '')
    """
    tag = re.search(r"tritonserver:(\d\d\.\d\d)-[\w.-]+$", image)
    return tag[1] if tag and any(row.name == tag[1] for row in every_release()) else ""


def documented_note(name: str) -> str:
    """Return in a line what is known of a release that is only documented, and what is not; empty for any other.

    >>> documented_note("24.08")
    ''
    """
    row = _documented(name)
    if row is None:
        return ""
    facts = {"Triton": row.triton, "vLLM": row.vllm, "Python": row.python, "CUDA": row.cuda}
    facts["driver"] = row.tested_driver
    known = [f"{what} {value}" for what, value in facts.items() if value]
    missing = [what for what, value in facts.items() if not value]
    unknown = ", ".join([*missing, "whether Python models may use numpy 2", "how it runs"])
    return (
        f"release {name} was not run here; documented: {', '.join(known)}, ensembles since 24.10; not known: {unknown}"
    )


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
    ran = ", ".join(row.name for row in list_releases())
    if _documented(name):
        raise ParameterError(
            f"use Triton release {name!r} here",
            found=f"it is only documented: there is no wheel of it, and no workaround. Those that were run: {ran}",
            hint="PROVIDER 'container' with FLAVOUR 'vllm-image' takes NVIDIA's own image of it, as "
            "`ensemblekit matrix --provider container` and `ensemblekit doctor --server IMAGE` do",
        )
    raise ParameterError(
        f"use Triton release {name!r}",
        found=f"the releases in env/releases.toml are {ran}",
        hint="choose one of these, for example `-p RELEASE 24.08` (in quotes inside a notebook)",
    )


def driver_for(release: DocumentedRelease) -> Driver:
    """Return the driver that the CUDA of a release's images needs.

    Raises:
        KeyError: The table has no driver for that CUDA; a test asks for every release that is run.

    >>> driver_for(get_release("24.08")).minimum
    '560'
    """
    return Driver(**_table()["drivers"][".".join(release.cuda.split(".")[:2])])


def minimum_driver(release: DocumentedRelease) -> str:
    """Return the oldest driver for any GPU that NVIDIA's notes name for the CUDA of a release's images, or nothing."""
    try:
        return driver_for(release).minimum
    except KeyError:
        return ""


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
