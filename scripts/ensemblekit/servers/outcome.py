# SPDX-License-Identifier: Apache-2.0
"""The outcome of an attempted start, as a value: the lessons show failures as data, not as tracebacks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ensemblekit.faults.log import (
    LogLine,
    ModelLoad,
    missing_library,
    model_loads,
    parse_log,
    poll_errors,
    read_log,
)
from ensemblekit.faults.start_phases import start_phases

__all__ = ["Kind", "StartOutcome", "outcome_of"]

Kind = Literal["ready", "exited", "stuck", "timeout"]


@dataclass(frozen=True)
class StartOutcome:
    """How a start ended. Its text holds no times, ports or paths, so that it is the same in every run.

    Attributes:
        kind: `ready`, `exited` (the process ended by itself), `stuck` (it waited for a model's process that
        could not start, and was stopped) or `timeout` (it ran but was never ready, and was stopped).
        exit_code: The exit code if it exited.
        elapsed_s: Seconds from the start of the process to the outcome.
        poll_errors: The server's messages about model directories it refused to read.
        loads: What happened to each model that began to load.
        last_line: The last line of the log, where Triton says why it gives up.
        log_path: The server's log.
    """

    kind: Kind
    exit_code: int | None
    elapsed_s: float
    poll_errors: tuple[str, ...]
    loads: tuple[ModelLoad, ...]
    last_line: str
    log_path: Path

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
    def lines(self) -> tuple[LogLine, ...]:
        """The entries of the server's log."""
        return parse_log(read_log(self.log_path))

    @property
    def phases(self) -> dict[str, float]:
        """Where the seconds went, by phase; see `ensemblekit.faults.start_phases`."""
        return start_phases(read_log(self.log_path), self.elapsed_s)

    def __str__(self) -> str:
        end = {
            "ready": "ready",
            "timeout": "not ready in time",
            "exited": f"exited with code {self.exit_code}",
            "stuck": f"stuck: no {self.missing_library}, without which the process of a model cannot start",
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
