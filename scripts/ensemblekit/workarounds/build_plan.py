# SPDX-License-Identifier: Apache-2.0
"""The command lines of upstream's build.py, with and without the one flag that matters."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ensemblekit.errors import ParameterError
from ensemblekit.releases import Release, get_release
from ensemblekit.servers.container import image_of

__all__ = [
    "CORE_SWITCH",
    "FLAG",
    "VARIANTS",
    "BuildPlan",
    "Variant",
    "compared",
    "joined",
    "make_plan",
    "plan_json",
    "print_plan",
    "shell_script",
]

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


def compared(plan: BuildPlan) -> tuple[tuple[str, str], ...]:
    """Return the options of the build without and with ensembles, side by side; an option that is lacking is empty.

    >>> [pair for pair in compared(make_plan("24.08", "full")) if pair[0] != pair[1]]
    [('', '--backend=ensemble')]
    """
    without, rows = plan.options(None), []
    for option in plan.options(FLAG):
        rows.append((option if option in without else "", option))
    return tuple(rows)


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


def print_plan(console: Console, plan: BuildPlan) -> None:
    """Print the plan for a reader: what to type, and the one option that matters."""

    def say(text: str = "", style: str = "") -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)

    say(f"Triton {plan.release.name} with vLLM and ensembles, {plan.variant} build, upstream's branch {plan.branch}")
    if plan.clone:
        say(f"\n1. The source\n\n{shlex.join(plan.clone)}\ncd {plan.folder}")
    else:
        say(f"\n1. The source is here\n\ncd {shlex.quote(plan.folder)}")
    say("\n2. The options of build.py: one of them matters\n")
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("without ensembles", no_wrap=True)
    table.add_column("with ensembles", no_wrap=True)
    for without, with_flag in compared(plan):
        table.add_row(without, with_flag, style="" if without == with_flag else "bold green")
    console.print(table)
    say(f"The same through the core's own switch: {CORE_SWITCH} instead of {FLAG}.")
    say(f"\n3. The dry run writes the scripts to build/ and stops\n\n{joined(plan.command(dryrun=True))}")
    say(f"\n4. The build\n\n{joined(plan.command())}")
    say(f"\n5. The name by which FLAVOUR custom-build with PROVIDER container finds it\n\n{shlex.join(plan.tag)}\n")
