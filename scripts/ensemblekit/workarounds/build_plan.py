# SPDX-License-Identifier: Apache-2.0
"""The command lines of upstream's build.py, with and without the flag that matters, and what they need."""

import importlib.util
import json
import os
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import httpx
import psutil

from ensemblekit.diagnose.preflight import Row
from ensemblekit.errors import KitError, ParameterError, one_of
from ensemblekit.paths import cache_dir
from ensemblekit.releases import Release, get_release
from ensemblekit.servers.container import image_of
from ensemblekit.servers.container_engine import find_engine

__all__ = [
    "CORE_SWITCH",
    "FLAG",
    "BuildPlan",
    "check_prerequisites",
    "compared",
    "joined",
    "make_plan",
    "plan_json",
    "shell_script",
    "unmet",
]

Variant = Literal["minimal", "full"]

SERVER_REPOSITORY = "https://github.com/triton-inference-server/server"
FLAG = "--backend=ensemble"
CORE_SWITCH = "--extra-core-cmake-arg=TRITON_ENABLE_ENSEMBLE=ON"

WIDTH = 100  # columns of a printed command
GB = 10**9
GIB = 2**30
# Upstream documents no figure. An estimate from image sizes: what is built, the build image and the CI image are
# each of the order of NVIDIA's vLLM image, and the compiler's own files come on top. Nobody has measured it.
IMAGES_AT_ONCE = 3
COMPILER_GB = 20
MEMORY_A_JOB_GIB = 1.0  # a C++ compiler on gRPC's sources; a rule of thumb, not upstream's
JOBS_A_CORE = 2  # upstream's default
DOCKER_SOCKET = Path("/var/run/docker.sock")  # upstream's script mounts this very path
DOCKER_IMAGES = Path("/var/lib/docker")  # unless docker was told otherwise
NETWORK_TIMEOUT_S = 4
PACKAGES = ("distro", "requests")  # what build.py of mid 2024 imports besides Python's own library

# What upstream's README of the vLLM backend gives for its image; `full` is that list, `minimal` leaves out the
# cloud file systems and the two endpoints of cloud services, whose SDKs take long to compile.
ENABLED = ("logging", "stats", "tracing", "metrics", "gpu-metrics", "cpu-metrics", "gpu")
FILE_SYSTEMS = {"minimal": (), "full": ("gcs", "s3", "azure_storage")}
ENDPOINTS = {"minimal": ("http", "grpc"), "full": ("http", "grpc", "sagemaker", "vertex-ai")}
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
        return [
            "-v",
            WITHOUT_TERMINAL,
            *([f"-j{self.jobs}"] if self.jobs else []),
            *(f"--enable-{name}" for name in ENABLED),
            *(f"--filesystem={name}" for name in FILE_SYSTEMS[self.variant]),
            *(f"--endpoint={name}" for name in ENDPOINTS[self.variant]),
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
    row, chosen = get_release(release), one_of("the build variant", variant, get_args(Variant))
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


def compared(plan: BuildPlan) -> tuple[tuple[str, str], ...]:
    """Return the options of the build without and with ensembles, side by side; an option that is lacking is empty.

    >>> [pair for pair in compared(make_plan("24.08", "full")) if pair[0] != pair[1]]
    [('', '--backend=ensemble')]
    """
    return tuple(("" if option == FLAG else option, option) for option in plan.options())


def plan_json(plan: BuildPlan) -> str:
    """Return the plan for programs: every command as a list of words."""
    return json.dumps(
        {
            "release": plan.release.name,
            "variant": plan.variant,
            "source": plan.folder,
            "clone": plan.clone,
            "dryrun": plan.command(dryrun=True),
            "build": plan.command(),
            "without_ensembles": plan.command(switch=None),
            "with_core_switch": plan.command(switch=CORE_SWITCH),
            "the_flag": FLAG,
            "tag": plan.tag,
        },
        indent=2,
    )


def shell_script(plan: BuildPlan) -> str:
    """Return the plan as a script that can be run as it is: source, dry run, build, name."""
    lines = [
        "#!/usr/bin/env bash",
        f"# Triton {plan.release.name} with vLLM and with ensembles ({plan.variant}), by upstream's own build.py.",
        f"# {FLAG} is what the vLLM image of 24.08 lacks. Needs git, Docker, and Python with requests and distro.",
        "set -euo pipefail",
        *([shlex.join(plan.clone)] if plan.clone else []),
        f"cd {shlex.quote(plan.folder)}",
        "# writes the scripts to build/ and stops: read them before the long part",
        joined(plan.command(dryrun=True)),
        joined(plan.command()),
        "# the name by which the kit's flavour custom-build finds it",
        shlex.join(plan.tag),
    ]
    return "\n".join(lines) + "\n"


def check_prerequisites(plan: BuildPlan, work: Path | None = None) -> tuple[Row, ...]:
    """Look at this machine and return the findings; takes a few seconds where a registry does not answer.

    Args:
        plan: What is to be built.
        work: Where the source and the build folder go, by default the kit's cache.

    Raises:
        OSError: The cache folder cannot be made.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    packages = f"no {' and no '.join(missing)}" if missing else "all that build.py imports"
    install = f"`.venv/bin/python -m pip install {' '.join(missing)}`"
    git = shutil.which("git")
    checkout = "`sudo apt install git`, or --source FOLDER with a checkout"
    return (
        Row("source", str(plan.source), fine=True, without="", required=True)
        if plan.source
        else Row("git", "installed" if git else "none", bool(git), checkout, required=True),
        Row("Python packages", packages, not missing, install, required=True),
        _docker(),
        _disk(plan, plan.source or work or cache_dir()),
        _memory(plan.jobs or JOBS_A_CORE * (psutil.cpu_count() or 1)),
        _site("github.com", "the components' sources cannot be cloned"),
        _site("nvcr.io", f"the base image {plan.release.name}-py3-min cannot be pulled"),
    )


def _docker() -> Row:
    usable = DOCKER_SOCKET.is_socket() and os.access(DOCKER_SOCKET, os.R_OK | os.W_OK)
    found = "docker answers" if usable else f"upstream's script mounts {DOCKER_SOCKET}, and you cannot use it"
    try:
        find_engine("docker")
    except KitError as error:
        usable, found = False, error.found
    start = "`sudo systemctl start docker`, and `sudo usermod -aG docker $USER` so that you may use it"
    install = "`sudo apt install docker.io`: upstream's scripts call docker itself"
    return Row("docker", found, usable, start if shutil.which("docker") else install, required=True)


def _disk(plan: BuildPlan, folder: Path) -> Row:
    wanted = IMAGES_AT_ONCE * plan.release.vllm_image_gb + COMPILER_GB
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    places = {"sources": existing} | ({"images": DOCKER_IMAGES} if DOCKER_IMAGES.is_dir() else {})
    free = min(shutil.disk_usage(place).free for place in places.values()) / GB
    fix = f"estimated need {wanted:.0f} GB (nobody has measured it): `docker system prune`, or a larger disk"
    return Row("free disk", f"{free:.0f} GB for {' and '.join(places)}", free >= wanted, fix, required=True)


def _memory(jobs: int) -> Row:
    free = psutil.virtual_memory().available / GIB
    fix = f"`--jobs {max(1, int(free / MEMORY_A_JOB_GIB))}`, or the compiler may be killed"
    return Row("memory", f"{free:.0f} GiB free for {jobs} compile jobs", free / jobs >= MEMORY_A_JOB_GIB, fix)


def _site(host: str, without: str) -> Row:
    try:
        httpx.head(f"https://{host}/", timeout=NETWORK_TIMEOUT_S)
    except httpx.TransportError:
        return Row(host, "not reached", fine=False, without=without)
    return Row(host, "reached", fine=True, without=without)


def unmet(rows: Iterable[Row]) -> list[Row]:
    """Return the required rows that are not fine."""
    return [row for row in rows if row.required and not row.fine]
