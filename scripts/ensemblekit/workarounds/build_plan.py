# SPDX-License-Identifier: Apache-2.0
"""The exact command lines of upstream's build.py for a release, with and without the one flag that matters."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ensemblekit.errors import ParameterError
from ensemblekit.releases import Release, get_release
from ensemblekit.servers.container import image_of

__all__ = ["CORE_SWITCH", "FLAG", "VARIANTS", "BuildPlan", "Variant", "joined", "make_plan"]

Variant = Literal["minimal", "full"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

SERVER_REPOSITORY = "https://github.com/triton-inference-server/server"
FLAG = "--backend=ensemble"
CORE_SWITCH = "--extra-core-cmake-arg=TRITON_ENABLE_ENSEMBLE=ON"

WIDTH = 100  # columns of a printed command

# What upstream's README of the vLLM backend gives for its image; `full` is that list, `minimal` leaves out the
# cloud file systems and the two endpoints of cloud services, whose SDKs take long to compile.
FEATURES = (
    "--enable-logging", "--enable-stats", "--enable-tracing", "--enable-metrics", "--enable-gpu-metrics",
    "--enable-cpu-metrics", "--enable-gpu",
)  # fmt: skip
CLOUD_FILE_SYSTEMS = ("--filesystem=gcs", "--filesystem=s3", "--filesystem=azure_storage")
ENDPOINTS = ("--endpoint=http", "--endpoint=grpc")
CLOUD_ENDPOINTS = ("--endpoint=sagemaker", "--endpoint=vertex-ai")
# upstream's script says `docker run -it`, which fails where the log goes to a file
WITHOUT_TERMINAL = "--no-container-interactive"


@dataclass(frozen=True)
class BuildPlan:
    """What has to be typed to build the vLLM image of a release with ensembles.

    Attributes:
        release: The release.
        variant: `minimal` or `full`.
        source: A checkout of the server repository; None if it is to be cloned.
        jobs: Compile jobs at once; None leaves upstream's default, two a core.
    """

    release: Release
    variant: Variant
    source: Path | None = None
    jobs: int | None = None

    @property
    def branch(self) -> str:
        """The release branch, which upstream's other repositories have too: their default tag on it is its name."""
        return f"r{self.release.name}"

    @property
    def folder(self) -> str:
        """The folder of the source: the one given, else the one that `clone` makes."""
        return str(self.source) if self.source else f"triton-server-{self.branch}"

    @property
    def clone(self) -> list[str]:
        """The command that fetches the source; empty if it is here already."""
        if self.source:
            return []
        return ["git", "clone", "--branch", self.branch, "--depth", "1", SERVER_REPOSITORY, self.folder]

    def options(self, switch: str | None = FLAG) -> list[str]:
        """Return the options of build.py.

        Args:
            switch: What turns ensembles on: `FLAG`, `CORE_SWITCH`, or None for a build that cannot load them.
        """
        full = self.variant == "full"
        return [
            *("-v", WITHOUT_TERMINAL, *([f"-j{self.jobs}"] if self.jobs else [])),
            *(*FEATURES, *(CLOUD_FILE_SYSTEMS if full else ())),
            *(*ENDPOINTS, *(CLOUD_ENDPOINTS if full else ())),
            f"--upstream-container-version={self.release.name}",
            *(f"--backend={name}:{self.branch}" for name in ("python", "vllm")),
            *([switch] if switch else []),
        ]

    def command(self, *, switch: str | None = FLAG, dryrun: bool = False) -> list[str]:
        """Return the command line, to be run in `folder`."""
        return ["python3", "build.py", *(["--dryrun"] if dryrun else []), *self.options(switch)]

    @property
    def image(self) -> str:
        """The name that makes the result the flavour `custom-build`."""
        return image_of(self.release, "custom-build")

    @property
    def tag(self) -> list[str]:
        """The command that gives upstream's image that name."""
        return ["docker", "tag", "tritonserver", self.image]


def make_plan(release: str, variant: str, *, source: Path | None = None, jobs: int | None = None) -> BuildPlan:
    """Return the plan for a release.

    Raises:
        ParameterError: The release or variant is unknown, or `source` holds no build.py.
    """
    row = get_release(release)
    chosen = next((name for name in VARIANTS if name == variant), None)
    if chosen is None:
        raise ParameterError(
            f"plan the build variant {variant!r}",
            found=f"the variants are {' and '.join(VARIANTS)}",
            hint="minimal leaves out the cloud file systems and endpoints; full is NVIDIA's own list",
        )
    if source is not None and not (source / "build.py").is_file():
        raise ParameterError(
            f"build from the source in {source}",
            found="no build.py in it",
            hint=f"give a checkout: git clone --branch r{row.name} --depth 1 {SERVER_REPOSITORY}",
        )
    return BuildPlan(row, chosen, source.resolve() if source else None, jobs)


def joined(words: list[str], width: int = WIDTH) -> str:
    r"""Return a command as a reader can type it; what turns ensembles on stands on a line of its own.

    >>> print(joined(["build.py", "-v", "--enable-gpu", "--backend=ensemble"], width=20))
    build.py -v \
        --enable-gpu \
        --backend=ensemble
    """
    lines = [""]
    for word in map(shlex.quote, words):
        alone = word in (FLAG, CORE_SWITCH)
        if lines[-1] and (alone or len(lines[-1]) + len(word) > width):
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return " \\\n".join(lines)
