# SPDX-License-Identifier: Apache-2.0
"""Run upstream's build line by line: timed, stoppable, and resumed behind the last line that was finished.

`build.py --dryrun` writes a script `docker_build` with one Docker command a line. Each is run by itself.
"""

import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.text import Text

from ensemblekit.diagnose.probe.start import ProbeAnswer
from ensemblekit.diagnose.probe.target import probe_installation
from ensemblekit.errors import BuildError
from ensemblekit.faults.catalogue import recognise
from ensemblekit.faults.container import BUILD_FAULTS
from ensemblekit.faults.log import last_line, tail
from ensemblekit.paths import cache_dir
from ensemblekit.servers.container import install_container
from ensemblekit.servers.container_engine import ContainerEngine, find_engine
from ensemblekit.servers.supervised import SupervisedProcess, wait_until
from ensemblekit.workarounds.build_plan import BuildPlan

__all__ = ["Build", "BuildLine", "BuildRecord", "read_lines", "read_record"]

BUILDER_STOP_S = 5  # for the compiler; what it has written stays in the container
POLL_S = 0.2
OTHERWISE = "mend what the log's end says and run the same command again: it goes on with this line"
PLAIN_PROGRESS = {"BUILDKIT_PROGRESS": "plain"}  # lines, not a screen that redraws itself
_SETTING = re.compile(r"set -\w+$")
_MAKES = re.compile(r"^docker (?P<verb>build|run)\b.*? (?:-t|--name) (?P<name>\S+)", re.MULTILINE)


class BuildLine(BaseModel):
    """One line of upstream's script: its text with the `cd` and the `if` before it, and what it has taken so far."""

    text: str
    attempts: int = 0
    seconds: float = 0.0
    finished: bool = False

    @property
    def title(self) -> str:
        """The command in a few words."""
        made = _MAKES.search(self.text)
        return f"docker {made['verb']} {made['name']}" if made else " ".join(self.text.splitlines()[-1].split()[:3])

    def made(self, verb: str) -> str:
        """The name of the image (`build`) or the container (`run`) that it makes; empty if it makes none."""
        made = _MAKES.search(self.text)
        return made["name"] if made and made["verb"] == verb else ""


class BuildRecord(BaseModel):
    """What a build has done, kept between runs; another fingerprint is another build."""

    fingerprint: str = ""
    lines: list[BuildLine] = []


def read_record(path: Path) -> BuildRecord:
    """Return what an earlier run wrote; nothing if that cannot be read."""
    try:
        return BuildRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return BuildRecord()


def read_lines(build: Path) -> list[BuildLine]:
    """Return the lines of the `docker_build` script in upstream's build folder, none of them run.

    Raises:
        BuildError: There is no script, or it does not have the form of the releases that the kit knows.
    """
    script = build / "docker_build"
    if not script.is_file():
        hint = "`ensemblekit build-plan run --dryrun` makes it, and its log says why it did not"
        raise BuildError("read the script that build.py writes", found=f"no {script}", hint=hint)
    lines, folder, condition, strange = list[BuildLine](), "", "", list[str]()
    for line in script.read_text().splitlines():
        if line.startswith("cd "):
            folder = f"{line}\n"
        elif line.startswith("if ") and line.endswith("fi"):
            condition = f"{line}\n"  # it takes away what stands in the way of the next line
        elif line.startswith("docker ") and not line.endswith("\\"):
            lines.append(BuildLine(text=folder + condition + line))
            condition = ""
        elif line.strip() and not line.startswith("#") and not _SETTING.match(line):
            strange.append(line)
    if strange or condition or not lines:
        found = f"not the form of r24.07 to r24.10: {(strange or [condition.strip() or 'no docker command'])[0]}"
        raise BuildError(f"cut {script} into lines", found=found, hint=f"run it as a whole: `bash {script}`")
    return lines


@dataclass
class Build:
    """One plan on its way. `run` does what is left of it and shows on the console where it is.

    Attributes:
        plan: What is built.
        console: For a sentence about each line, and the running one's seconds and last words.
        work: Where log and record are, and the source if it is cloned; by default one place in the cache for all
            builds, because upstream's images have the same names for every release.
    """

    plan: BuildPlan
    console: Console
    work: Path | None = None

    def __post_init__(self) -> None:
        """Find the folders, and what an earlier run did; nothing is made yet."""
        self.folder = self.work or cache_dir() / "builds"
        self.source = self.plan.source or self.folder / self.plan.folder
        self.build = self.source / "build"  # always inside the checkout
        self.log = self.folder / "build.log"  # of all lines and attempts
        self.record_path = self.folder / "build.json"
        self.record = read_record(self.record_path)
        self._title = f"{self.plan.release.name}-{self.plan.variant}-"
        self._status = self.console.status("")

    @property
    def begun(self) -> bool:
        """Whether an earlier run has begun one of the lines."""
        return self.record.fingerprint.startswith(self._title) and any(line.attempts for line in self.record.lines)

    def run(self, *, dryrun: bool = False, fresh: bool = False) -> ProbeAnswer | None:
        """Do what is not done yet and return the answer of the server that was built; None after a dry run.

        Args:
            dryrun: Stop when upstream's scripts are written; nothing of Docker is needed.
            fresh: Forget what earlier runs did, and clone anew.

        Raises:
            BuildError: A line failed, another run uses the folder, or the result has no ensembles.
            UnsupportedMachine: No engine answers.
            KeyboardInterrupt: It was stopped; the next run goes on with the same line.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0), self._status:
                self._fetch_source(fresh=fresh)
                self._write_scripts(fresh=fresh)
                return None if dryrun else self._run_lines()
        except Timeout as error:
            hint = "wait for it, or give another folder with --work"
            found = "another `build-plan run` works there"
            raise BuildError(f"build in {self.folder}", found=found, hint=hint) from error

    def _fetch_source(self, *, fresh: bool) -> None:
        if self.plan.source or ((self.source / "build.py").is_file() and not fresh):
            return
        shutil.rmtree(self.source, ignore_errors=True)
        self._call("clone", self.plan.clone, folder=self.folder)

    def _write_scripts(self, *, fresh: bool) -> None:
        """Let build.py write its scripts, which takes a second; what was done with the same ones counts."""
        command = [sys.executable, *self.plan.command(dryrun=True)[1:]]
        self._call("dry run", command, folder=self.source)
        digest = hashlib.sha256("\0".join(command).encode())
        for file in sorted([*self.build.glob("*_build"), *self.build.glob("Dockerfile*")]):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
        fingerprint = f"{self._title}{digest.hexdigest()}"
        if fresh or self.record.fingerprint != fingerprint:
            self.record = BuildRecord(fingerprint=fingerprint, lines=read_lines(self.build))
        self._write_record()

    def _write_record(self) -> None:
        """Write the record, whole or not at all."""
        draft = self.record_path.with_suffix(".draft")
        draft.write_text(self.record.model_dump_json(indent=2) + "\n")
        draft.replace(self.record_path)

    def _run_lines(self) -> ProbeAnswer:
        engine = find_engine("docker")  # upstream's scripts call docker, no other engine
        done = True
        for number, line in enumerate(self.record.lines, 1):
            place = f"line {number} of {len(self.record.lines)}, {line.title}"
            image = line.made("build")
            done = done and line.finished and (not image or engine.has_image(image))
            if done:
                self._say(f"{place}: done before in {line.seconds:.0f} s, not repeated")
            else:
                self._run_line(place, line, engine)
        return self._finish(engine)

    def _run_line(self, place: str, line: BuildLine, engine: ContainerEngine) -> None:
        """Run one line; compiling goes on in the container of a failed attempt."""
        command, after = ["bash", "-c", f"set -e\n{line.text}"], list[str]()
        if container := line.made("run"):
            # the container would compile on after its client has been killed
            after = [engine.name, "stop", "-t", str(BUILDER_STOP_S), container]
            begun = line.attempts and not line.finished
            if begun and engine.ask("container", "inspect", container).returncode == 0:
                command = [engine.name, "start", "--attach", container]
        line.attempts += 1
        line.finished = False
        self._write_record()
        self._say(f"{place}: begins, attempt {line.attempts}")
        begin = time.monotonic()
        try:
            self._call(place, command, folder=self.build, after=after)
            line.finished = True
        finally:
            seconds = time.monotonic() - begin
            line.seconds += seconds
            self._write_record()
            self._say(f"{place}: {'done' if line.finished else 'stopped'} after {seconds:.1f} s")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _call(self, what: str, command: Sequence[str], *, folder: Path, after: Sequence[str] = ()) -> None:
        """Run a command with its output appended to the log; whatever ends this call ends all that came of it.

        Raises:
            BuildError: It failed.
        """
        with self.log.open("a") as log:
            log.write(f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {what}\n")
        begin = time.monotonic()
        process = SupervisedProcess(
            command, self.log, environment=os.environ | PLAIN_PROGRESS, folder=folder, after=after, append=True
        )

        def show() -> None:
            text = f"{what}: {time.monotonic() - begin:.0f} s  {last_line(self.log)}"
            self._status.update(Text(text, no_wrap=True, overflow="ellipsis"))

        try:
            code = wait_until(lambda: process.exit_code, interval_s=POLL_S, on_poll=show)
        finally:
            process.stop()
        if code:
            lines = tail(self.log)
            known = recognise("\n".join(lines), among=BUILD_FAULTS)
            raise BuildError(
                f"finish {what}, of the build",
                found=f"exit code {code} after {time.monotonic() - begin:.1f} s",
                hint=known.hint.format(engine="docker", registry="nvcr.io") if known else OTHERWISE,
                log_path=self.log,
                log_tail=lines,
            )

    def _finish(self, engine: ContainerEngine) -> ProbeAnswer:
        """Probe the image that was built and give it the kit's name."""
        release = self.plan.release
        installation = install_container(release, "custom-build", "build-plan", image="tritonserver", engine=engine)
        probe = probe_installation(installation, self.folder / "probe", "tritonserver")
        if not (probe.ensembles is True and engine.ask(*self.plan.tag[1:]).returncode == 0):
            hint = "did another build.py run meanwhile? Begin anew with --fresh"
            raise BuildError(f"use the image that was built as {self.plan.image}", found=str(probe), hint=hint)
        return probe
