# SPDX-License-Identifier: Apache-2.0
"""The outcome of an attempted start, as a value: the lessons show failures as data, not as tracebacks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ensemblekit.faults.log import (
    LogLine,
    ModelLoad,
    dead_process,
    missing_library,
    model_loads,
    parse_log,
    poll_errors,
    read_log,
)

__all__ = ["CRASH_LOG", "Kind", "StartOutcome", "outcome_of"]

CRASH_LOG = "server.crashed.log"
Kind = Literal["ready", "exited", "stuck", "timeout"]


@dataclass(frozen=True)
class StartOutcome:
    """How a start ended. Its text holds no times, ports or paths, so that it is the same in every run.

    Attributes:
        kind: `ready`, `exited` (the process ended by itself), `stuck` (it waited for a model's process that
        could not start or died, and was stopped) or `timeout` (it ran but was never ready, and was stopped).
        exit_code: The exit code if it exited.
        elapsed_s: Seconds from the start of the process to the outcome.
        poll_errors: The server's messages about model directories it refused to read.
        loads: What happened to each model that began to load.
        last_line: The last line of the log, where Triton says why it gives up.
        log_path: The server's log.
        crashes: How many starts before this one ended by a fault of Triton's own, and were made again.
        gave_up: Whether the last of them ended because Triton gave up a model's process.
    """

    kind: Kind
    exit_code: int | None
    elapsed_s: float
    poll_errors: tuple[str, ...]
    loads: tuple[ModelLoad, ...]
    last_line: str
    log_path: Path
    crashes: int = 0
    gave_up: bool = False

    @property
    def ready(self) -> bool:
        """Whether the server became ready."""
        return self.kind == "ready"

    @property
    def loaded(self) -> tuple[str, ...]:
        """The models that were loaded at some time, by name."""
        return tuple(sorted(load.model for load in self.loads if load.loaded_s is not None))

    @property
    def missing_library(self) -> str | None:
        """The shared library without which a process could not start, None if all started."""
        return missing_library(read_log(self.log_path))

    @property
    def stuck(self) -> str:
        """What the server waited for in vain; empty if it did not."""
        if library := self.missing_library:
            return f"no {library}, without which the process of a model cannot start"
        return dead_process(read_log(self.log_path)) or ""

    @property
    def note(self) -> str:
        """What happened on the way that is no part of the outcome; empty if nothing did."""
        if not self.crashes:
            return ""
        times = f"{self.crashes} time{'s' if self.crashes > 1 else ''}"
        what = (
            f"Triton gave up the process of a model {times}, and was started again. It does so when the process does "
            "not answer for a second while it loads: a machine short of time, or one that slept."
            if self.gave_up
            else f"Triton crashed {times} while it ended this failed start (signal 11 or 6), and was started again. "
            "That is a race of its own: it unloads a model whose thread has said that it is ready and not yet put its "
            "instance back."
        )
        return f"{what} The log of the last such start is {self.log_path.with_name(CRASH_LOG).name}."

    @property
    def lines(self) -> tuple[LogLine, ...]:
        """The entries of the server's log."""
        return parse_log(read_log(self.log_path))

    def __str__(self) -> str:
        end = {
            "ready": "ready",
            "timeout": "not ready in time",
            "exited": f"exited with code {self.exit_code}",
            "stuck": f"stuck: {self.stuck}",
        }
        rows = [f"server:     {end[self.kind]}"]
        rows += [f"poll error: {message}" for message in self.poll_errors]
        rows.append(f"loaded:     {', '.join(self.loaded) or 'no model'}")
        rows += [f"failed:     {load.model}: {load.failure}" for load in self.loads if load.failure]
        if self.kind == "exited":
            rows.append(f"last words: {self.last_line}")
        return "\n".join(rows)

    __repr__ = __str__


def outcome_of(kind: Kind, exit_code: int | None, elapsed_s: float, log_path: Path) -> StartOutcome:
    """Return the outcome, with what the log says.

    Raises:
        OSError: The log cannot be read.
    """
    text = read_log(log_path)
    lines = parse_log(text)
    return StartOutcome(
        kind=kind,
        exit_code=exit_code,
        elapsed_s=elapsed_s,
        poll_errors=poll_errors(lines),
        loads=model_loads(lines),
        last_line=next((line for line in reversed(text.splitlines()) if line.strip()), ""),
        log_path=log_path,
    )
