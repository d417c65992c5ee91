# SPDX-License-Identifier: Apache-2.0
"""Parent of a server process: outlives the kernel that asked for it, and lets nothing outlive itself.

Started as `python -P _reaper.py SHM_PREFIX [--after JSON] COMMAND...` in a session of its own, with a pipe on
standard input that only the kernel holds. It starts the command, and when the pipe closes (the kernel died,
however it died) or says "stop", it ends the command and every process that came of it. It exits with the
command's exit code (128 + n after signal n), so that the kernel can read it. Shared memory regions that begin
with SHM_PREFIX, which a killed Python stub leaves behind, are removed, and so is the empty folder of a killed
Python backend. JSON is a command that is run when COMMAND has ended: it removes the container of a client
that was killed.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

__all__: list[str] = []

SERVER_NAME = "tritonserver"
TEMPORARY = Path("/tmp")  # noqa: S108 - fixed in the Python backend
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STOP_WORD = b"stop"
STOP_GRACE_S = 40.0  # Triton's own --exit-timeout-secs is 30
ORPHAN_GRACE_S = 3.0  # nobody waits for the result any more
POLL_S = 0.05
AFTER_TIMEOUT_S = 15.0  # removing a container takes about one second
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Triton's Python backend keeps its regions


def _on_start() -> None:
    # if this process is killed too, the server must not stay
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _ignore(_number: int, _frame: object) -> None:
    pass


def _watch(child: "subprocess.Popen[bytes]") -> float | None:
    """Wait for the child's end (None) or for the word to stop it (seconds of grace)."""
    while child.poll() is None:
        if select.select([0], [], [], POLL_S)[0]:
            return STOP_GRACE_S if os.read(0, len(STOP_WORD)) == STOP_WORD else ORPHAN_GRACE_S
    return None


def _descendants() -> "list[psutil.Process]":
    import psutil  # here: who only starts this program does not pay for it

    # as a sub-reaper, this process is the ancestor of all that came of the command, re-parented or not
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def _end(child: "subprocess.Popen[bytes]", grace_s: float | None, after: list[str]) -> None:
    import psutil

    if grace_s is not None and child.poll() is None:
        child.terminate()  # the server alone: it stops its own stubs in order
        try:
            child.wait(grace_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    _run_after(after)  # while the engine's own processes still live
    left = _descendants()
    for process in left:
        process.terminate()
    _gone, alive = psutil.wait_procs(left, timeout=ORPHAN_GRACE_S)
    while alive:  # a killed process can have started another just before
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=ORPHAN_GRACE_S)
        alive = _descendants()


def _run_after(command: list[str]) -> None:
    if not command:
        return
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        quiet = subprocess.DEVNULL  # that the container is gone already is no news
        subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=AFTER_TIMEOUT_S, check=False)


def _remove_environments(begin: float) -> None:
    import psutil

    # the Python backend makes one empty folder a server, which says not whose it is: keep those of other
    # servers
    if any(process.info["name"] == SERVER_NAME for process in psutil.process_iter(["name"])):
        return
    for folder in TEMPORARY.glob("python_env_*"):
        with contextlib.suppress(OSError):  # not empty, or another user's
            if folder.stat().st_mtime >= begin:
                folder.rmdir()


def main() -> int:
    """Run the command, watch the pipe, end everything; return the exit code to pass on."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ignore)  # the pipe decides; a handler, unlike SIG_IGN, is not inherited
    prefix, *command = sys.argv[1:]
    after = list[str]()
    if command[0] == "--after":
        after, command = json.loads(command[1]), command[2:]
    begin = time.time()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_on_start)
    _end(child, _watch(child), after)
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
    _remove_environments(begin)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
