# SPDX-License-Identifier: Apache-2.0
"""A process that dies with this one, with all that came of it: how the kit starts every long-lived command.

Between this process and the command stands the reaper (`_reaper.py`). It watches a pipe that only this process holds.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ensemblekit.errors import ServerExited
from ensemblekit.faults.log import tail
from ensemblekit.servers import _reaper
from ensemblekit.servers._reaper import KILL_WORD, ORPHAN_GRACE_S, READY_WORD, STOP_GRACE_S, STOP_WORD

__all__ = ["STOP_GRACE_S", "Supervised", "SupervisedProcess", "new_prefix", "reaped", "sockets_folder", "wait_until"]

POLL_S = 0.1
T = TypeVar("T")


def new_prefix(purpose: str = "") -> str:
    """Return a new name that the shared memory of one process begins with; it says whose process started that.

    >>> new_prefix("serve").startswith("ensemblekit-serve-")
    True
    """
    owner = f"{_reaper.namespace()}.{os.getpid()}"
    return f"ensemblekit-{purpose}{'-' if purpose else ''}{owner}-{secrets.token_hex(4)}-"


def sockets_folder(shm_prefix: str) -> str:
    """Return where a process may put sockets: beside its shared memory, so that they end with it as that does."""
    return f"{_reaper.SHARED_MEMORY / shm_prefix}sockets"


def reaped(command: Sequence[str], shm_prefix: str = "", after: Sequence[str] = ()) -> list[str]:
    """Return the command line that runs a command under the reaper, which reads from a pipe when to end it."""
    then = ["--after", json.dumps(list(after))] if after else []
    # by path and with -P: the reaper needs nothing of this package, so it starts in a twentieth of a second
    return [sys.executable, "-P", _reaper.__file__, shm_prefix or new_prefix(), *then, *command]


class SupervisedProcess:
    """A running command with its output in a log. All that came of it ends with it, with `stop`, or with this process.

    Attributes:
        log_path: Its output.
        pid: Process id of its reaper, which is its parent.
    """

    def __init__(
        self,
        command: Sequence[str],
        log_path: Path,
        *,
        environment: Mapping[str, str],
        folder: Path,
        shm_prefix: str = "",
        after: Sequence[str] = (),
        append: bool = False,
    ) -> None:
        """Start a command.

        Args:
            command: The command line.
            log_path: Gets what it writes.
            environment: All of its variables.
            folder: Where it runs.
            shm_prefix: Shared memory whose name begins so is removed afterwards.
            after: A command to run once it has ended, however it ended.
            append: Whether the log is continued.

        Raises:
            OSError: The log or the reaper cannot be made.
        """
        self.log_path = log_path
        with log_path.open("ab" if append else "wb") as log:
            self._reaper = subprocess.Popen(
                reaped(command, shm_prefix, after),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
            )
        self.pid = self._reaper.pid

    @property
    def exit_code(self) -> int | None:
        """How the command ended (128 + n after signal n), None while it runs."""
        return self._reaper.poll()

    def say_ready(self) -> None:
        """Tell its reaper that it has started: what is slow to end from now on is being unloaded, not given up."""
        if pipe := self._reaper.stdin:
            with contextlib.suppress(OSError, ValueError):  # it ended, or was stopped meanwhile
                pipe.write(READY_WORD)
                pipe.flush()

    def require_answer(
        self, answers: Callable[[], bool], timeout_s: float, *, attempted: str, late: str, hint: str, tail_lines: int
    ) -> None:
        """Return once it answers; one that ends before, or does not in time, is stopped.

        Args:
            answers: Whether it answers now.
            timeout_s: Seconds it may take.
            attempted: What was attempted, for the error.
            late: What was found if it has written nothing.
            hint: What to do.
            tail_lines: How many of its last lines are in the error.

        Raises:
            ServerExited: It ended, or did not answer in time.
        """
        answered = wait_until(lambda: self.exit_code is not None or answers() or None, timeout_s)
        if answered and self.exit_code is None:
            return
        lines = tail(self.log_path, tail_lines)
        self.stop()
        found = lines[-1] if lines else late
        raise ServerExited(attempted, found=found, hint=hint, log_path=self.log_path, log_tail=lines)

    def stop(self, *, at_once: bool = False) -> bool:
        """End the command and all that came of it; doing so again does nothing.

        Args:
            at_once: Whether what is under way is given up.

        Returns:
            Whether its reaper ended in time; one that did not was killed.
        """
        if pipe := self._reaper.stdin:
            with contextlib.suppress(OSError):
                pipe.write(KILL_WORD if at_once else STOP_WORD)
                pipe.close()
        try:
            self._reaper.wait(STOP_GRACE_S + 4 * ORPHAN_GRACE_S)
        except subprocess.TimeoutExpired:
            self._reaper.kill()
            self._reaper.wait()
            return False
        return True


class Supervised:
    """What runs as one supervised process between its start and its stop."""

    _process: SupervisedProcess | None = None

    @property
    def running(self) -> bool:
        """Whether it runs now."""
        process = self._process  # another thread may stop it meanwhile
        return process is not None and process.exit_code is None

    @property
    def exit_code(self) -> int | None:
        """How it ended by itself, None while it runs and after `stop`."""
        return self._process.exit_code if self._process else None

    def stop(self) -> None:
        """End it and all that came of it; doing so again does nothing."""
        self._end()

    def _end(self, *, at_once: bool = False) -> bool:
        """As `SupervisedProcess.stop`; what does not run has ended in time."""
        process, self._process = self._process, None
        return process is None or process.stop(at_once=at_once)


def wait_until(
    ask: Callable[[], T | None],
    timeout_s: float | None = None,
    *,
    interval_s: float = POLL_S,
    on_poll: Callable[[], None] | None = None,
) -> T | None:
    """Ask again and again until there is an answer, and return it; None if there was none in time.

    Args:
        ask: Returns None as long as there is no answer.
        timeout_s: Seconds; None means without end.
        interval_s: Seconds between two questions.
        on_poll: Called after each question without an answer.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while (answer := ask()) is None:
        if deadline is not None and time.monotonic() > deadline:
            return None
        if on_poll:
            on_poll()
        time.sleep(interval_s)
    return answer
