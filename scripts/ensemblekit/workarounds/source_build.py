# SPDX-License-Identifier: Apache-2.0
"""Run upstream's build line by line: timed, stoppable, and resumed behind the last line that was finished.

`build.py --dryrun` writes a script `docker_build` with one Docker command a line. Each is run by itself.
"""

import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from ensemblekit.diagnose.probe.start import ProbeAnswer
from ensemblekit.diagnose.probe.target import probe_installation
from ensemblekit.errors import BuildError, KitError, ParameterError
from ensemblekit.faults.catalogue import recognise
from ensemblekit.faults.container import BUILD_FAULTS
from ensemblekit.faults.log import last_line, tail
from ensemblekit.paths import cache_dir
from ensemblekit.servers.container import install_container
from ensemblekit.servers.container_engine import ContainerEngine, find_engine
from ensemblekit.servers.supervised import SupervisedProcess, wait_until
from ensemblekit.workarounds.build_plan import BuildPlan, missing_packages

__all__ = ["Build", "BuildLine", "BuildRecord", "read_lines", "read_record"]

BUILDER_STOP_S = 5  # for the compiler; what it has written stays in the container
POLL_S = 0.2
OTHERWISE = "mend what the log's end says and run the same command again: it goes on with this line"
PLAIN_PROGRESS = {"BUILDKIT_PROGRESS": "plain"}  # lines, not a screen that redraws itself
_SETTING = re.compile(r"set -\w+$")
_MAKES = re.compile(r"^docker (?P<verb>build|run)\b.*? (?:-t|--name) (?P<name>\S+)", re.MULTILINE)


class BuildLine(BaseModel):
    """One line of upstream's script.

    Attributes:
        text: The line, with the `if` before it.
        folder: Where it runs, as the script says; empty for upstream's build folder.
        attempts: How often it was begun.
        seconds: Wall time of all attempts together.
        finished: Whether it went through.
        made: The id of the image or container it made: upstream's names are the same for every release.
    """

    text: str
    folder: str = ""
    attempts: int = 0
    seconds: float = 0.0
    finished: bool = False
    made: str = ""

    @property
    def title(self) -> str:
        """The command in a few words."""
        made = _MAKES.search(self.text)
        return f"docker {made['verb']} {made['name']}" if made else " ".join(self.text.split()[:3])

    @property
    def container(self) -> str:
        """The container that the line runs; empty if it runs none."""
        made = _MAKES.search(self.text)
        return made["name"] if made and made["verb"] == "run" else ""

    def is_there(self, engine: ContainerEngine) -> bool:
        """Return whether what the line made is still what stands under its name."""
        return self.ask_made(engine) == self.made

    def ask_made(self, engine: ContainerEngine) -> str:
        """Return the id of what stands under the name that the line makes; empty if nothing does."""
        made = _MAKES.search(self.text)
        if made is None:
            return ""
        kind = "image" if made["verb"] == "build" else "container"
        return engine.ask(kind, "inspect", "--format", "{{.Id}}", made["name"]).stdout.strip()


class BuildRecord(BaseModel):
    """What a build has done, kept between runs; another fingerprint is another build."""

    fingerprint: str
    lines: list[BuildLine]


def read_record(path: Path) -> BuildRecord | None:
    """Return what an earlier run wrote; None if there is nothing that can be read."""
    try:
        return BuildRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def read_lines(build: Path) -> list[BuildLine]:
    """Return the lines of the `docker_build` script in upstream's build folder, none of them run.

    Raises:
        BuildError: There is no script, or it does not have the form of the releases that the kit knows.
    """
    script = build / "docker_build"
    if not script.is_file():
        hint = "`ensemblekit build-plan run --dryrun` makes it, and its log says why it did not"
        raise BuildError("read the script that build.py writes", found=f"no {script}", hint=hint)
    lines, folder, condition = list[BuildLine](), "", ""
    for line in script.read_text().splitlines():
        if line.startswith("cd "):
            folder = line
        elif line.startswith("if ") and line.endswith("fi"):
            condition = line + "\n"  # it takes away what stands in the way of the next line
        elif line.startswith("docker ") and not line.endswith("\\"):
            lines.append(BuildLine(text=condition + line, folder=folder))
            condition = ""
        elif line.strip() and not line.startswith("#") and not _SETTING.match(line):
            raise _unknown(script, line)
    if condition or not lines:
        raise _unknown(script, condition.strip() or "no docker command")
    return lines


def _unknown(script: Path, found: str) -> BuildError:
    hint = f"run it as a whole, without resume: `bash {script}`"
    return BuildError(f"cut {script} into lines", found=f"not the form of r24.07 to r24.10: {found}", hint=hint)


def _fingerprint(build: Path, command: Sequence[str]) -> str:
    """Return a checksum of what will be run: the command line and every script that it wrote."""
    digest = hashlib.sha256("\0".join(command).encode())
    for file in sorted([*build.glob("*_build"), *build.glob("Dockerfile*")]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


@dataclass
class Build:
    """One plan on its way. `run` does what is left of it.

    Attributes:
        plan: What is built.
        work: Where log and record are, and the source if it is cloned; by default in the cache.
        say: Called with a sentence when a line is skipped, begins or ends.
        live: Called a few times a second with the running line, its seconds and the log's last line.
        record: The lines of upstream's script, and what each has taken.
    """

    plan: BuildPlan
    work: Path | None
    say: Callable[[str], None]
    live: Callable[[str], None]

    def __post_init__(self) -> None:
        """Find the folders; nothing is made yet."""
        self.folder = self.work or cache_dir() / "builds" / f"{self.plan.release.name}-{self.plan.variant}"
        self.source = self.plan.source or self.folder / self.plan.folder
        self.build = self.source / "build"  # always inside the checkout
        self.log = self.folder / "build.log"  # of all lines and attempts
        self.record_path = self.folder / "build.json"
        self.record = BuildRecord(fingerprint="", lines=[])

    def run(self, *, dryrun: bool = False, fresh: bool = False, start: int | None = None) -> ProbeAnswer | None:
        """Do what is not done yet and return the answer of the server that was built; None after a dry run.

        Args:
            dryrun: Stop when upstream's scripts are written; nothing of Docker is needed.
            fresh: Forget what earlier runs did, and clone anew.
            start: Repeat from this line of upstream's script on; the first is 1.

        Raises:
            BuildError: A line failed, another run uses the folder, or the result has no ensembles.
            ParameterError: The script has no line `start`.
            UnsupportedMachine: No engine answers.
            KeyboardInterrupt: It was stopped; the next run goes on with the same line.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                return self._run(dryrun=dryrun, fresh=fresh, start=start)
        except Timeout as error:
            hint = "wait for it, or give another folder with --work"
            found = "another `build-plan run` works there"
            raise BuildError(f"build in {self.folder}", found=found, hint=hint) from error

    def _run(self, *, dryrun: bool, fresh: bool, start: int | None) -> ProbeAnswer | None:
        self._clone(fresh=fresh)
        self._write_scripts()
        lines = self.record.lines
        if dryrun:
            return None
        if start and start > len(lines):
            hint = f"1 to {len(lines)}; the log of the last run names them"
            raise ParameterError(f"begin at line {start}", found="no such line in upstream's script", hint=hint)
        engine = find_engine("docker")  # upstream's scripts call docker, no other engine
        first = 0 if fresh else self._first_to_run(engine)
        first = min(first, start - 1) if start else first
        for number, line in enumerate(lines):
            if number < first:
                self._tell(number, f"done before in {line.seconds:.0f} s, not repeated")
                continue
            if number > first or fresh or number + 1 == start:
                # what it made came of an older result of the lines before it
                lines[number] = BuildLine(text=line.text, folder=line.folder)
            self._do_line(number, engine)
        return self._finish(engine)

    def _clone(self, *, fresh: bool) -> None:
        """Fetch the source, whole or not at all."""
        if self.plan.source or (self.source.is_dir() and not fresh):
            return
        draft = self.folder / "clone"
        for folder in (draft, self.source):
            shutil.rmtree(folder, ignore_errors=True)
        self._call("clone", [*self.plan.clone[:-1], str(draft)], folder=self.folder)
        draft.rename(self.source)

    def _write_scripts(self) -> None:
        """Let build.py write its scripts, which takes a second, and find how far an earlier run came with them."""
        if missing := missing_packages(self.source):
            found = f"it imports {', '.join(missing)}, which this Python lacks"
            hint = f"{sys.executable} -m pip install {' '.join(missing)}"
            raise BuildError(f"run {self.source / 'build.py'}", found=found, hint=hint)
        command = [sys.executable, *self.plan.command(dryrun=True)[1:]]
        self._call("dry run", command, folder=self.source)
        old = read_record(self.record_path)
        self.record = BuildRecord(fingerprint=_fingerprint(self.build, command), lines=read_lines(self.build))
        if old is not None and old.fingerprint == self.record.fingerprint:
            self.record = old
        self._write()

    def _first_to_run(self, engine: ContainerEngine) -> int:
        """Return the index of the first line that is not finished, or whose image is gone."""
        lines = enumerate(self.record.lines)
        left = (index for index, one in lines if not (one.finished and (one.container or one.is_there(engine))))
        return next(left, len(self.record.lines))

    def _do_line(self, number: int, engine: ContainerEngine) -> None:
        """Run one line; compiling goes on in the container of a failed attempt."""
        line = self.record.lines[number]
        command, after = ["bash", "-c", f"set -e\n{line.folder}\n{line.text}"], list[str]()
        if line.container:
            # the container would compile on after its client has been killed
            after = [engine.name, "stop", "-t", str(BUILDER_STOP_S), line.container]
            if line.made and line.is_there(engine):
                command = [engine.name, "start", "--attach", line.container]
        line.attempts += 1
        line.finished = False
        self._write()
        self._tell(number, f"begins, attempt {line.attempts}")
        begin = time.monotonic()
        try:
            self._call(self._place(number), command, folder=self.build, after=after)
            line.finished = True
        finally:
            line.seconds += time.monotonic() - begin
            with contextlib.suppress(KitError):  # an engine that has died meanwhile
                line.made = line.ask_made(engine)
            self._write()
            self._tell(number, f"{'done' if line.finished else 'stopped'} after {line.seconds:.1f} s")

    def _place(self, number: int) -> str:
        return f"line {number + 1} of {len(self.record.lines)}, {self.record.lines[number].title}"

    def _tell(self, number: int, text: str) -> None:
        self.say(f"{self._place(number)}: {text}")

    def _write(self) -> None:
        """Write the record, whole or not at all."""
        draft = self.record_path.with_suffix(".draft")
        draft.write_text(self.record.model_dump_json(indent=2) + "\n")
        draft.replace(self.record_path)

    def _call(self, what: str, command: Sequence[str], *, folder: Path, after: Sequence[str] = ()) -> None:
        """Run a command with its output appended to the log; whatever ends this call ends all that came of it.

        Raises:
            BuildError: It failed.
        """
        with self.log.open("a") as log:
            log.write(f"=== {datetime.now():%Y-%m-%d %H:%M:%S} {what}\n")
        begin = time.monotonic()
        process = SupervisedProcess(
            command, self.log, environment=os.environ | PLAIN_PROGRESS, folder=folder, after=after, append=True
        )

        def poll() -> None:
            self.live(f"{what}: {time.monotonic() - begin:.0f} s  {last_line(self.log)}")

        try:
            code = wait_until(lambda: process.exit_code, interval_s=POLL_S, on_poll=poll)
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
        self.live("probe: does it know ensembles?")
        release = self.plan.release
        installation = install_container(release, "custom-build", "build-plan", image="tritonserver", engine=engine)
        probe = probe_installation(installation, self.folder / "probe", "tritonserver")
        if not (probe.ensembles is True and engine.ask(*self.plan.tag[1:]).returncode == 0):
            hint = "did another build.py run meanwhile? Begin anew with --fresh"
            raise BuildError(f"use the image that was built as {self.plan.image}", found=str(probe), hint=hint)
        return probe
