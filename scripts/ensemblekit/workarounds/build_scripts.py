# SPDX-License-Identifier: Apache-2.0
"""Upstream's generated `docker_build`, cut into the stages that it runs one after the other.

build.py writes the script with `set -e` at its top and one Docker command a step. Each stage here is that script's
own lines, so that a stage that failed can be run again without those before it.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ensemblekit.errors import BuildError

__all__ = ["BUILDER", "SCRIPT_STAGES", "STAGES", "ScriptStage", "Stage", "fingerprint", "read_stages"]

Stage = Literal[
    "clone", "dryrun", "tritonserver_buildbase", "cmake_build", "artifacts", "tritonserver", "tritonserver_cibase",
    "probe",
]  # fmt: skip
STAGES: tuple[Stage, ...] = get_args(Stage)
SCRIPT_STAGES: tuple[Stage, ...] = STAGES[2:7]
BUILDER = "tritonserver_builder"  # the container that compiles
# which line of the script belongs to which stage; the first that fits
_MARKS: tuple[tuple[Stage, "re.Pattern[str]"], ...] = (
    ("tritonserver_buildbase", re.compile(r"^docker build\b.* -t tritonserver_buildbase ")),
    ("tritonserver_cibase", re.compile(r"^docker build\b.* -t tritonserver_cibase ")),
    ("tritonserver", re.compile(r"^docker build\b.* -t tritonserver ")),
    ("cmake_build", re.compile(rf"^(if .*\bdocker ps\b.*{BUILDER}|docker run\b.*--name {BUILDER} )")),
    ("artifacts", re.compile(rf"^docker cp {BUILDER}:")),
)
_SETTING = re.compile(r"^set -\w+$")
_FOLDER = re.compile(r"^cd \S")


@dataclass(frozen=True)
class ScriptStage:
    """One stage: its name, and the lines of upstream's script that do it."""

    name: Stage
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines as a script of their own."""
        return "\n".join(self.lines) + "\n"


def read_stages(build: Path) -> tuple[ScriptStage, ...]:
    """Return the stages of the `docker_build` script in upstream's build folder, in order.

    Raises:
        BuildError: There is none, or it does not have the form of the releases that the kit knows.
    """
    script = build / "docker_build"
    if not script.is_file():
        raise BuildError(
            "read the script that build.py writes",
            found=f"no {script}",
            hint="`ensemblekit build-plan run --dryrun` makes it, and its log says why it did not",
        )
    settings, folder = list[str](), ""
    found: dict[Stage, list[str]] = {}
    for line in script.read_text().splitlines():
        if _SETTING.match(line):
            settings.append(line)
        elif _FOLDER.match(line):
            folder = line
        elif name := next((stage for stage, mark in _MARKS if mark.match(line)), None):
            found.setdefault(name, [*settings, *([folder] if folder else [])]).append(line)
        elif line.strip() and not line.startswith("#"):
            raise _unknown(script, line)
    if tuple(found) != SCRIPT_STAGES:
        raise _unknown(script, f"the stages {', '.join(found) or 'none'}")
    return tuple(ScriptStage(name, tuple(lines)) for name, lines in found.items())


def _unknown(script: Path, found: str) -> BuildError:
    return BuildError(
        f"cut {script} into stages",
        found=f"not the form of r24.07 to r24.10: {found}",
        hint=f"run it as a whole, without meter and resume: `bash {script}`",
    )


def fingerprint(build: Path, command: Sequence[str]) -> str:
    """Return a checksum of what will be run: the command line and every script that it wrote.

    Raises:
        OSError: A script cannot be read.
    """
    digest = hashlib.sha256("\0".join(command).encode())
    for file in sorted([*build.glob("*_build"), *build.glob("Dockerfile*")]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
