# SPDX-License-Identifier: Apache-2.0
"""The meter of a build: seconds and disk a stage, written while it runs, and the memory that a resume goes by."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ValidationError, computed_field

from ensemblekit.workarounds.build_scripts import STAGES, Stage

__all__ = ["Meter", "StageClock", "StageRecord", "State", "folder_bytes", "read_meter"]

State = Literal["waiting", "running", "done", "failed", "interrupted"]
GB, GIB = 10**9, 2**30
WRITE_EVERY_S = 5.0  # the folder is walked each time


class StageRecord(BaseModel):
    """What one stage took.

    Attributes:
        state: Where it stands; `running` in a file whose writer has died means interrupted.
        attempts: How often it was begun.
        seconds: Wall time of all attempts together.
        build_folder_gb: Size of the build folder when it was last looked at.
        free_disk_used_gb: By how much the free disk shrank during the last attempt, images included; negative if
            something was freed.
        made: The id of the image or container it made, by which a resume knows that it is still there.
    """

    state: State = "waiting"
    attempts: int = 0
    seconds: float = 0.0
    build_folder_gb: float = 0.0
    free_disk_used_gb: float = 0.0
    made: str = ""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def minutes(self) -> float:
        """Wall time in minutes."""
        return round(self.seconds / 60, 2)


class Meter(BaseModel):
    """All stages of one build, and the machine that it ran on: minutes say nothing without cores."""

    release: str
    variant: str
    command: list[str]
    source: str
    cores: int = 0
    memory_gib: float = 0.0
    fingerprint: str = ""
    stages: dict[Stage, StageRecord]

    @classmethod
    def fresh(cls, release: str, variant: str, command: list[str], source: str) -> "Meter":
        """Return a meter on which nothing has run."""
        return cls(
            release=release, variant=variant, command=command, source=source,
            cores=psutil.cpu_count() or 0, memory_gib=round(psutil.virtual_memory().total / GIB, 1),
            stages={name: StageRecord() for name in STAGES},
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Wall time of all stages, in seconds."""
        return sum(record.seconds for record in self.stages.values())

    @property
    def done(self) -> tuple[Stage, ...]:
        """The stages that are done."""
        return tuple(name for name, record in self.stages.items() if record.state == "done")

    def forget(self, first: Stage) -> None:
        """Begin anew with a stage: it and all after it are waiting."""
        for name in STAGES[STAGES.index(first) :]:
            self.stages[name] = StageRecord()

    def write(self, path: Path) -> None:
        """Write the meter as JSON, whole or not at all.

        Raises:
            OSError: The file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(self.model_dump_json(indent=2) + "\n")
        draft.replace(path)


def read_meter(path: Path) -> Meter | None:
    """Return what an earlier build wrote; None if there is none that can be read."""
    try:
        return Meter.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def folder_bytes(folder: Path) -> int:
    """Return the bytes that a folder's files take on the disk; files that vanish meanwhile count nothing."""
    total = 0
    for root, _folders, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512  # POSIX: blocks of 512 bytes
    return total


class StageClock:
    """Measures one attempt at a stage and keeps the meter's file current."""

    def __init__(
        self, meter: Meter, stage: Stage, path: Path, build: Path, image_space: Callable[[], int | None]
    ) -> None:
        """Begin to measure.

        Args:
            meter: Holds the stage's record.
            stage: Which one.
            path: The meter's file.
            build: The folder whose size is measured.
            image_space: Free bytes where the engine keeps images, None if unknown.
        """
        self._meter, self._path, self._build, self._image_space = meter, path, build, image_space
        self.record = meter.stages[stage]
        self.record.state, self.record.attempts = "running", self.record.attempts + 1
        self._before_s, self._begin_s, self._written_s = self.record.seconds, time.monotonic(), 0.0
        self._free = self._free_bytes()
        self.tick(force=True)

    def _free_bytes(self) -> int:
        """Free bytes: of the images' disk where it can be seen, else of the build folder's."""
        space = self._image_space()
        folder = next(path for path in (self._build, *self._build.parents) if path.is_dir())
        return space if space is not None else shutil.disk_usage(folder).free

    def tick(self, *, force: bool = False) -> None:
        """Take the measures, and write them now and then."""
        now = time.monotonic()
        self.record.seconds = self._before_s + now - self._begin_s
        if force or now - self._written_s > WRITE_EVERY_S:
            self.record.build_folder_gb = folder_bytes(self._build) / GB
            self.record.free_disk_used_gb = (self._free - self._free_bytes()) / GB
            self._meter.write(self._path)
            self._written_s = time.monotonic()

    def end(self, state: State) -> None:
        """Take the last measures and write how the stage ended."""
        self.record.state = state
        self.tick(force=True)
