# SPDX-License-Identifier: Apache-2.0
"""Commands of the set-up, with their output in one log under runs/setup."""

import os
import subprocess
import time
from typing import Callable, Optional

from setup import ROOT
from setup.messages import SetupError

TICK_S = 0.2  # often enough for a bar that moves, too seldom to cost anything
QUIET_TICK_S = 0.02
NOT_INHERITED = ("PIP_TARGET", "PIP_PREFIX", "PYTHONHOME", "PYTHONPATH")


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
