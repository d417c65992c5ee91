# SPDX-License-Identifier: Apache-2.0
"""What the set-up says: errors with a hint, and progress, on stderr; stdout belongs to the program started later.

The commands that it runs write into one log under runs/setup.
"""

import os
import shutil
import subprocess
import sys
import time
from typing import Callable, Optional

from setup import ROOT

LOG_TAIL_LINES = 12
PLAIN_UPDATE_S = 20  # without a terminal: one line now and then shows that it still works
TICK_S = 0.2  # often enough for a bar that moves, too seldom to cost anything
QUIET_TICK_S = 0.02
NOT_INHERITED = ("PIP_TARGET", "PIP_PREFIX", "PYTHONHOME", "PYTHONPATH")


class SetupError(Exception):
    """Set-up cannot go on; its text is what was attempted, what was found, and a hint."""

    def __init__(self, attempted: str, found: str, hint: str, log_path: str = "") -> None:
        lines = ["Could not %s." % attempted, "Found: %s" % found]
        if log_path:
            tail = _tail(log_path)
            lines += ["Last %d log lines:" % len(tail), "```"] + tail + ["```", "Log: %s" % log_path]
        super().__init__("\n".join(lines + ["Hint: %s" % hint]))
        self.found, self.log_path = found, log_path


def _tail(path: str) -> list:
    """Return the last lines of a log that say something; pip's remarks on unused locations do not."""
    with open(path, errors="replace") as file:
        lines = [line.rstrip() for line in file if line.strip() and "is ignored: it is" not in line]
    return lines[-LOG_TAIL_LINES:]


def say(text: str) -> None:
    """Print a line for the person who waits."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Phase:
    """One line of progress: a live bar on a terminal, else a line at the end and now and then in between."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = self.said = time.monotonic()
        self.live = sys.stderr.isatty()
        self.show(0, 0, "")

    def show(self, done: int, total: int, note: str) -> None:
        """Show `done` of `total` steps."""
        elapsed = time.monotonic() - self.began
        count = "%d/%d" % (done, total) if total else ""
        if self.live:
            filled = int(20 * done / total) if total else 0
            bar = "[%s%s] " % ("#" * filled, "." * (20 - filled)) if total else ""
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(("\r\033[K  %-12s %s%s %s %.0f s" % (self.name, bar, count, note, elapsed))[: width + 4])
            sys.stderr.flush()
        elif time.monotonic() - self.said > PLAIN_UPDATE_S:
            self.said = time.monotonic()
            say("  %-12s %s %s, %.0f s so far" % (self.name, count, note, elapsed))

    def end(self, text: str) -> None:
        """Replace the bar by the outcome."""
        if self.live:
            sys.stderr.write("\r\033[K")
        say("  %-12s %-52s %5.1f s" % (self.name, text, time.monotonic() - self.began))


class Log:
    """The log of one set-up."""

    def __init__(self) -> None:
        name = "%s-%d" % (time.strftime("%Y%m%d-%H%M%S"), os.getpid())
        self.folder = os.path.join(ROOT, "runs", "setup", name)
        self.path = os.path.join(self.folder, "pip.log")
        os.makedirs(self.folder, exist_ok=True)

    def run(self, command: list, attempted: str, hint: str, watch: Optional[Callable] = None, **env: str) -> None:
        """Run a command with its output in the log; raise with the end of the log if it fails.

        `watch` is called every now and then with the place in the log where this command's output begins.
        """
        kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        kept["PIP_USER"] = "0"  # a user's own default of --user would refuse every virtual environment
        with open(self.path, "ab") as log:
            log.write(("$ %s\n" % " ".join(command)).encode())
            log.flush()
            start = log.tell()
            # close_fds: a program that outlives this process keeps the set-up's lock, see environment.exclusive
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(kept, **env),
                close_fds=False,
            )
            try:
                while process.poll() is None:
                    if watch:
                        watch(start)
                    time.sleep(TICK_S if watch else QUIET_TICK_S)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if process.returncode:
            raise SetupError(attempted, "exit code %d" % process.returncode, hint, self.path)

    def note(self, lines: list) -> None:
        """Add lines to the log."""
        with open(self.path, "a") as log:
            log.write("\n".join(lines) + "\n")

    def lines_from(self, start: int) -> list:
        """Return the lines of the log from a place in it."""
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace").splitlines()
