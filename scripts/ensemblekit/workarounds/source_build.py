# SPDX-License-Identifier: Apache-2.0
"""Run upstream's build stage by stage: metered, stoppable, and resumed where it failed."""

import shutil
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from ensemblekit.diagnose.probe.installation import Probe, probe_ensembles
from ensemblekit.errors import BuildError, KitError
from ensemblekit.paths import cache_dir
from ensemblekit.servers.container import install_container
from ensemblekit.servers.container_engine import ContainerEngine, find_engine
from ensemblekit.workarounds.build_evidence import builder_can_go_on, first_to_run, image_space, made_by
from ensemblekit.workarounds.build_failures import stage_error
from ensemblekit.workarounds.build_meter import Meter, StageClock, StageRecord, State, read_meter
from ensemblekit.workarounds.build_plan import BuildPlan
from ensemblekit.workarounds.build_process import last_line, run_logged
from ensemblekit.workarounds.build_scripts import BUILDER, SCRIPT_STAGES, STAGES, Stage, fingerprint, read_stages
from ensemblekit.workarounds.prerequisites import missing_packages

__all__ = ["Build", "BuildResult", "Watcher", "work_folder"]

BUILDER_STOP_S = 5  # for the compiler; what it has written stays in the container


class Watcher(Protocol):
    """Sees a build's progress."""

    def skipped(self, stage: Stage, record: StageRecord) -> None:
        """A stage was done in an earlier run."""

    def begun(self, stage: Stage, record: StageRecord) -> None:
        """A stage begins."""

    def polled(self, stage: Stage, record: StageRecord, line: str) -> None:
        """A stage is under way; `line` is the log's last."""

    def ended(self, stage: Stage, record: StageRecord) -> None:
        """A stage has ended, well or not."""


@dataclass(frozen=True)
class BuildResult:
    """A build that went through.

    Attributes:
        meter: What each stage took.
        probe: The answer of the server that was built; None after a dry run.
        image: The image's name for the flavour `custom-build`; empty after a dry run.
    """

    meter: Meter
    probe: Probe | None
    image: str


def work_folder(plan: BuildPlan) -> Path:
    """Return where a plan's source, log and meter are kept between runs.

    Raises:
        OSError: The cache folder cannot be made.
    """
    return cache_dir() / "builds" / f"{plan.release.name}-{plan.variant}"


@dataclass
class Build:
    """One plan on its way. `run` does what is left of it.

    Attributes:
        plan: What is built.
        work: Where log and meter are, and the source if it is cloned.
        watcher: Sees the progress.
        engine: Docker, found by itself when it is first needed.
        meter: What each stage has taken so far, in earlier runs too.
    """

    plan: BuildPlan
    work: Path
    watcher: Watcher
    engine: ContainerEngine | None = None
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        """Read what an earlier run left; another command line or source begins anew."""
        command = [sys.executable, *self.plan.command()[1:]]
        fresh = Meter.fresh(self.plan.release.name, self.plan.variant, command, str(self.source))
        old = read_meter(self.meter_path)
        same = old is not None and (old.command, old.source) == (fresh.command, fresh.source)
        self.meter = old if old is not None and same else fresh

    @property
    def source(self) -> Path:
        """The checkout of the server repository."""
        return self.plan.source or self.work / self.plan.folder

    @property
    def build(self) -> Path:
        """Upstream's build folder, always inside the checkout."""
        return self.source / "build"

    @property
    def log(self) -> Path:
        """The log of all stages and attempts."""
        return self.work / "build.log"

    @property
    def meter_path(self) -> Path:
        """The meter's file."""
        return self.work / "meter.json"

    @property
    def resumed(self) -> bool:
        """Whether an earlier run has built something, so that less disk is needed than at the begin."""
        return any(self.meter.stages[stage].attempts for stage in SCRIPT_STAGES)

    def run(self, *, dryrun: bool = False, fresh: bool = False, start: Stage | None = None) -> BuildResult:
        """Do what is not done yet and return the result.

        Args:
            dryrun: Stop when upstream's scripts are written; nothing of Docker is needed.
            fresh: Forget what earlier runs did.
            start: Repeat from this stage on.

        Raises:
            BuildError: A stage failed, another run uses the folder, or the result has no ensembles.
            UnsupportedMachine: No engine answers.
            KeyboardInterrupt: It was stopped; the next run goes on with the same stage.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.work / ".lock", timeout=0):
                return self._run(dryrun=dryrun, start="clone" if fresh else start)
        except Timeout as error:
            raise BuildError(
                f"build in {self.work}", found="another `build-plan run` works there",
                hint="wait for it, or give another folder with --work",
            ) from error  # fmt: skip

    def _run(self, *, dryrun: bool, start: Stage | None) -> BuildResult:
        if start:
            self.meter.forget(start)
        if not dryrun:
            self.engine = self.engine or find_engine("docker")  # upstream's scripts call docker, no other engine
        first = first_to_run(self.meter, self.engine, self.build)
        left = STAGES[STAGES.index(first) :]
        for stage in STAGES[: STAGES.index(first)]:
            self.watcher.skipped(stage, self.meter.stages[stage])
        if not dryrun or "dryrun" in left:  # without an engine, nobody knows whether later results are there
            for stage in left[1:]:
                self.meter.forget(stage)
        if "clone" in left:
            self._clone()
        if "dryrun" in left:
            self._write_scripts()
        if dryrun or self.engine is None:
            return BuildResult(self.meter, None, "")
        scripts = {script.name: script.text for script in read_stages(self.build)}
        for stage in (name for name in SCRIPT_STAGES if name in left):
            self._do_script(stage, scripts[stage], self.engine)
        return self._finish(self.engine)

    def _clone(self) -> None:
        if self.plan.source:
            record = self.meter.stages["clone"]
            record.state, record.made = "done", made_by("clone", None, self.build)
            return
        shutil.rmtree(self.source, ignore_errors=True)  # half a clone
        self._do("clone", self.plan.clone, folder=self.work)

    def _write_scripts(self) -> None:
        self._require_packages()
        self._do("dryrun", [*self.meter.command, "--dryrun"], folder=self.source)
        self.meter.fingerprint = fingerprint(self.build, self.meter.command)
        self.meter.write(self.meter_path)

    def _require_packages(self) -> None:
        if missing := missing_packages(self.source):
            raise BuildError(
                f"run {self.source / 'build.py'}", found=f"it imports {', '.join(missing)}, which this Python lacks",
                hint=f"{sys.executable} -m pip install {' '.join(missing)}",
            )  # fmt: skip

    def _do_script(self, stage: Stage, text: str, engine: ContainerEngine) -> None:
        """Run a stage of upstream's script; compiling goes on in the container of a failed attempt."""
        command, after = ["bash", "-c", text], list[str]()
        if stage == "cmake_build":
            # the container would compile on after its client has been killed
            after = [engine.name, "stop", "-t", str(BUILDER_STOP_S), BUILDER]
            if builder_can_go_on(self.meter, engine, self.build):
                command = [engine.name, "start", "--attach", BUILDER]
        self._do(stage, command, folder=self.build, after=after)

    def _do(self, stage: Stage, command: list[str], *, folder: Path, after: list[str] | None = None) -> None:
        """Run one stage, metered.

        Raises:
            BuildError: Its command failed.
        """
        clock = StageClock(self.meter, stage, self.meter_path, self.build, lambda: image_space(self.engine))
        self.watcher.begun(stage, clock.record)
        self._headline(stage, clock.record)

        def poll() -> None:
            clock.tick()
            self.watcher.polled(stage, clock.record, last_line(self.log))

        try:
            code = run_logged(command, self.log, folder=folder, after=after or [], on_poll=poll)
        except BaseException:
            self._end(stage, clock, "interrupted")
            raise
        self._end(stage, clock, "done" if code == 0 else "failed")
        if code != 0:
            raise stage_error(stage, code, clock.record, self.log)

    def _end(self, stage: Stage, clock: StageClock, state: State) -> None:
        try:
            clock.record.made = made_by(stage, self.engine, self.build)
        except KitError:  # an engine that has died meanwhile
            clock.record.made = ""
        clock.end(state)
        self.watcher.ended(stage, clock.record)

    def _headline(self, stage: Stage, record: StageRecord) -> None:
        with self.log.open("a") as log:
            log.write(f"=== {datetime.now():%Y-%m-%d %H:%M:%S} {stage}, attempt {record.attempts}\n")

    def _finish(self, engine: ContainerEngine) -> BuildResult:
        """Probe the image that was built and give it the kit's name."""
        clock = StageClock(self.meter, "probe", self.meter_path, self.build, lambda: image_space(self.engine))
        self.watcher.begun("probe", clock.record)
        try:
            installation = install_container(
                self.plan.release, "custom-build", "build-plan", image="tritonserver", engine=engine
            )
            probe = probe_ensembles(installation, self.work / "probe")
        except BaseException:
            self._end("probe", clock, "failed")
            raise
        good = probe.ensembles is True and engine.ask("tag", "tritonserver", self.plan.image).returncode == 0
        self._end("probe", clock, "done" if good else "failed")
        if not good:
            raise BuildError(
                f"use the image that was built as {self.plan.image}", found=str(probe),
                hint="did another build.py run meanwhile? Repeat the end with `--from tritonserver`",
            )  # fmt: skip
        return BuildResult(self.meter, probe, self.plan.image)
