# SPDX-License-Identifier: Apache-2.0
"""Is what a stage made still there? A resume repeats a stage unless the engine itself still shows its result."""

import shutil
from pathlib import Path

from ensemblekit.errors import KitError
from ensemblekit.servers.container_engine import ContainerEngine
from ensemblekit.workarounds.build_meter import Meter
from ensemblekit.workarounds.build_scripts import BUILDER, STAGES, Stage, fingerprint

__all__ = ["builder_can_go_on", "first_to_run", "image_space", "made_by"]


def made_by(stage: Stage, engine: ContainerEngine | None, build: Path) -> str:
    """Return an id of what the stage has made; empty if it is not there, or no engine can be asked.

    Raises:
        UnsupportedMachine: The engine does not answer.
    """
    files: dict[Stage, Path] = {
        "clone": build.parent / "build.py", "dryrun": build / "docker_build", "artifacts": build / "install",
    }  # fmt: skip
    if stage in files:
        return stage if files[stage].exists() else ""
    if engine is None or stage == "probe":
        return ""
    # upstream's names are the same for every release, so only the id tells whose they are
    kind, name = ("container", BUILDER) if stage == "cmake_build" else ("image", stage)
    return engine.ask(kind, "inspect", "--format", "{{.Id}}", name).stdout.strip()


def first_to_run(meter: Meter, engine: ContainerEngine | None, build: Path) -> Stage:
    """Return the first stage that is not done, or whose result is gone; the probe is never skipped.

    Raises:
        UnsupportedMachine: The engine does not answer.
    """
    copied = _there("artifacts", meter, engine, build)
    for stage in STAGES[:-1]:
        needless = stage == "cmake_build" and copied  # once its results are copied, the container is not needed
        if not (needless and meter.stages[stage].state == "done") and not _there(stage, meter, engine, build):
            return stage
    return "probe"


def _there(stage: Stage, meter: Meter, engine: ContainerEngine | None, build: Path) -> bool:
    record = meter.stages[stage]
    if record.state != "done" or not record.made or made_by(stage, engine, build) != record.made:
        return False
    return stage != "dryrun" or fingerprint(build, meter.command) == meter.fingerprint


def builder_can_go_on(meter: Meter, engine: ContainerEngine | None, build: Path) -> bool:
    """Return whether the compiling container of a failed attempt is still there: it holds all that was compiled.

    Raises:
        UnsupportedMachine: The engine does not answer.
    """
    record = meter.stages["cmake_build"]
    return bool(record.made) and made_by("cmake_build", engine, build) == record.made


def image_space(engine: ContainerEngine | None) -> int | None:
    """Return the free bytes where docker keeps images; None if that is on another machine, or it does not answer."""
    try:
        answer = engine.ask("info", "--format", "{{.DockerRootDir}}").stdout.strip() if engine else ""
    except KitError:
        return None  # an engine that is busy building may not answer in time
    folder = Path(answer or "/nonexistent")
    return shutil.disk_usage(folder).free if folder.is_dir() else None
