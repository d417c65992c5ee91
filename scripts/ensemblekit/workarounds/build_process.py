# SPDX-License-Identifier: Apache-2.0
"""One step of a build as a process that dies with this one, its output in a log."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ensemblekit.servers.supervised import SupervisedProcess, new_prefix, wait_until

__all__ = ["last_line", "percent_of", "run_logged"]

TAIL_BYTES = 4096  # holds a last line
# what make, the classic builder and BuildKit say of how far they are
_PERCENT = re.compile(r"^\[\s*(\d{1,3})%\]")
_STEPS = re.compile(r"^(?:Step |#\d+ \[(?:[\w -]*? )?)(\d+)/(\d+)")
PLAIN_PROGRESS = {"BUILDKIT_PROGRESS": "plain"}  # lines, not a screen that redraws itself


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    folder: Path,
    after: Sequence[str] = (),
    on_poll: Callable[[], None] | None = None,
) -> int:
    """Run a command with its output appended to a log, and return its exit code.

    Whatever ends this call (an interrupt, the death of this process) ends the command and all that came of it.

    Args:
        command: The command line.
        log: The log, appended to.
        folder: Where the command runs.
        after: A command to run once it has ended, however it ended.
        on_poll: Called about ten times a second.

    Raises:
        OSError: It cannot be started.
    """
    process = SupervisedProcess(
        command,
        log,
        environment=os.environ | PLAIN_PROGRESS,
        folder=folder,
        shm_prefix=new_prefix("build"),
        after=after,
        append=True,
    )
    try:
        code = wait_until(lambda: process.exit_code, on_poll=on_poll)
    finally:
        process.stop()
    return code if code is not None else 0


def last_line(log: Path) -> str:
    """Return the last line of a log that says something, empty without one."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def percent_of(line: str) -> int | None:
    """Return how far a build tool says it is, in percent; None if the line does not say.

    >>> percent_of("[ 42%] Building CXX object src/main.cc.o"), percent_of("Step 3/12 : RUN apt-get update")
    (42, 25)
    >>> percent_of("#9 [stage-1 4/8] COPY . .")
    50
    """
    if match := _PERCENT.match(line):
        return min(100, int(match[1]))
    if (match := _STEPS.match(line)) and int(match[2]):
        return min(100, 100 * int(match[1]) // int(match[2]))
    return None
