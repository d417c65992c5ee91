# SPDX-License-Identifier: Apache-2.0
"""Parent of a server process: outlives the kernel that asked for it, and lets nothing outlive itself.

Started as `python -P _reaper.py SHM_PREFIX [--after JSON] COMMAND...` in a session of its own, with a pipe on
standard input that only the kernel holds. It starts the command, and when the pipe closes (the kernel died,
however it died) or says "stop" or "kill", it ends the command and every process that came of it; "live" says that
the server is ready. It exits with the command's exit code (128 + n after signal n), so that the kernel can read it.
Shared memory regions that begin with SHM_PREFIX, which a killed Python stub leaves behind, are removed, and so is
the empty folder of a killed Python backend. JSON is a command that is run when COMMAND has ended: it removes the
container of a client that was killed.

Triton neither notices that the process of a Python model died nor ends such a process when it dies itself, and for
one that it gave up while it loaded it waits without limit. So the reaper watches them: one that died is named in the
log, and the server ended; one for whose end a server that starts waits in vain is ended. And it is two processes: a
keeper, and its child that does the work. Whichever is killed, the other ends all that came of the command; what is
left when both are killed, the next reaper of this user removes.
"""

import contextlib
import ctypes
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

__all__: list[str] = []

SERVER_NAME, STUB_NAME = "tritonserver", "triton_python_b"  # the kernel keeps 15 letters of a name
TEMPORARY = Path("/tmp")  # noqa: S108 - fixed in the Python backend
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Triton's Python backend keeps its regions
OWNED = re.compile(r"ensemblekit-(?:[a-z]+-)?(?P<space>[0-9a-f]+)\.(?P<pid>\d+)-[0-9a-f]{8}-")
FOLDERS = "python_env_*"  # of the Python backend, one a server, for the environments that models bring
THREADS, STARTED = 17, 19  # fields of /proc/PID/stat after the name
NAME_FROM_END = 3  # in a stub's arguments: its instance's name, then the memory manager's, then nothing
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STOP_WORD, KILL_WORD, READY_WORD = b"stop", b"kill", b"live"
STOP_GRACE_S = 40.0  # Triton's own --exit-timeout-secs is 30
ORPHAN_GRACE_S = 3.0  # nobody waits for the result any more
POLL_S = 0.05
LOOK_S = 0.3  # between two looks at the models' processes; one that is dead at two of them is not being waited for
ORDERLY_LOOKS = 50  # one that ended as it should: a busy Triton waits for it later
AWAITED_S = 5.0  # between two looks at what the server's threads wait for, of which it has hundreds
LATE_LOOKS = 6  # one that Triton gave up; of a start that fails also one that is told to end, as late as Triton's own
WAIT4 = {"61", "260"}  # its number on x86_64 and on aarch64
TRIAL = 1 << 8  # Triton tries whether a stub can run: without arguments it ends with exit code 1 (stub_launcher.cc)
AFTER_TIMEOUT_S = 15.0  # removing a container takes about one second


class _Process(NamedTuple):
    pid: int
    name: str
    state: str
    parent: int
    threads: int
    started_s: float  # since the system started
    status: int  # as `waitpid` has it; only a zombie's says anything


def _process(pid: int) -> _Process | None:
    try:
        before, _, after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
    except OSError:  # ended meanwhile
        return None
    fields = after.split()
    started_s = int(fields[STARTED]) / os.sysconf("SC_CLK_TCK")
    name, parent, threads = before.partition("(")[2], int(fields[1]), int(fields[THREADS])
    return _Process(pid, name, fields[0], parent, threads, started_s, int(fields[-1]))


def _processes() -> Iterator[_Process]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return (found for pid in pids if (found := _process(pid)))


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


class _Stubs:
    """The processes of a server's Python models."""

    def __init__(self, server: int, prefix: str) -> None:
        self.server, self._prefix, self._claimed = server, prefix, False
        self._began = time.time()
        self._models, self._strangers = dict[int, str](), set[int]()
        self._dead, self._late, self._ended = Counter[int](), Counter[int](), set[int]()
        self._next_look = self._next_awaited = 0.0
        self.ready = False  # then one for whose end Triton waits is being unloaded, which may take its time

    def died(self) -> str | None:
        """Return which one died, and how; None while none did."""
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + LOOK_S
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self._strangers &= pids
        stubs = [stub for pid in sorted(pids - self._strangers) if (stub := self._stub(pid))]
        if stubs and not self._claimed:
            self._claimed = True
            self._claim_folder()
        if stubs and not self.ready:
            self._end_late(stubs)
        # one that still has threads is about to end: nobody can wait for it before it gave back its memory
        dead = [stub for stub in stubs if stub.state == "Z" and stub.threads <= 1]
        self._dead = Counter({stub.pid: self._dead[stub.pid] + 1 for stub in dead})
        for stub in dead:
            is_trial = stub.status == TRIAL and stub.pid not in self._models
            in_order = stub.status == 0 or is_trial or stub.pid in self._ended
            if self._dead[stub.pid] >= (ORDERLY_LOOKS if in_order else 2):
                return f"{self._models.get(stub.pid, 'the process of a model')} ended ({_manner(stub.status)})"
        return None

    def _end_late(self, stubs: list[_Process]) -> None:
        """End those for whose end the server has waited in vain: it goes on when they are gone."""
        if time.monotonic() < self._next_awaited:
            return
        self._next_awaited = time.monotonic() + AWAITED_S
        awaited = _awaited(self.server)
        self._late = Counter({stub.pid: self._late[stub.pid] + 1 for stub in stubs if stub.pid in awaited})
        for pid, looks in self._late.items():
            if looks == LATE_LOOKS and pid in self._models:
                print(f"ensemblekit: Triton waits in vain for the end of {self._models[pid]}: ended", flush=True)
                self._ended.add(pid)
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _claim_folder(self) -> None:
        """Note, under this server's prefix, which folder its Python backend has made just before its first stub.

        The folder says not whose it is. Where another server made one at the same moment, both stay unclaimed.
        """
        taken = {path.name.rpartition("-")[2] for path in SHARED_MEMORY.glob(f"ensemblekit-*-{FOLDERS}")}
        new = [path.name for path in TEMPORARY.glob(FOLDERS) if _made(path) >= self._began and path.name not in taken]
        if len(new) == 1:
            with contextlib.suppress(OSError):
                (SHARED_MEMORY / f"{self._prefix}{new[0]}").touch(mode=0o600)

    def _stub(self, pid: int) -> _Process | None:
        found = _process(pid)
        if found is None or found.parent != self.server:
            if found and found.parent != os.getpid():
                self._strangers.add(pid)
            return None
        if found.name != STUB_NAME and not (found.state == "Z" and found.status):
            return None  # a shell that is about to become one, if nobody kills it before
        if len(words := _arguments(pid)) > NAME_FROM_END:
            model = re.sub(r"_\d+_\d+$", "", words[-NAME_FROM_END])
            self._models[pid] = f"the process of model {model}"
        return found


def _awaited(server: int) -> set[int]:
    """Return the processes for whose end a thread of the server waits; none where the kernel does not tell."""
    found = set[int]()
    for thread in Path(f"/proc/{server}/task").glob("*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or the kernel lets nobody look
            call = (thread / "syscall").read_text().split()
            if call[0] in WAIT4:
                found.add(int(call[1], 16))
    return found


def _made(folder: Path) -> float:
    try:
        return folder.stat().st_mtime  # nothing was put into it since
    except OSError:  # gone meanwhile
        return 0.0


def _manner(status: int) -> str:
    return f"signal {status & 127}" if status & 127 else f"exit code {status >> 8}"


def _watch(child: "subprocess.Popen[bytes]", keeper: int, prefix: str) -> float | None:
    """Wait for the child's end (None) or for a reason to stop it (seconds of grace)."""
    stubs = _Stubs(child.pid, prefix)
    while child.poll() is None:
        if os.getppid() != keeper:
            return ORPHAN_GRACE_S
        if select.select([0], [], [], POLL_S)[0]:
            word = os.read(0, len(STOP_WORD))
            if word != READY_WORD:
                return {STOP_WORD: STOP_GRACE_S, KILL_WORD: 0.0}.get(word, ORPHAN_GRACE_S)
            stubs.ready = True
        if dead := stubs.died():
            print(f"ensemblekit: {dead}; Triton does not notice, so the server is ended", flush=True)
            return 0.0
    return None


def _end(child: "subprocess.Popen[bytes]", grace_s: float) -> None:
    child.terminate()  # the server alone: it stops its own stubs in order
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _end_descendants() -> None:
    """End all that came of the command: as a sub-reaper, this process is the ancestor of it, re-parented or not."""
    number, begin = signal.SIGTERM, time.monotonic()
    told = set[int]()
    while _has_children():
        if time.monotonic() - begin > ORPHAN_GRACE_S:
            number, told = signal.SIGKILL, set()  # again and again: a killed process can have started another before
        for pid in _descendants() - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            told.add(pid)
        time.sleep(POLL_S)


def _has_children() -> bool:
    """Return whether any process is left; unlike a list of them, this misses none that moves to another parent."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _descendants() -> set[int]:
    children = dict[int, list[int]]()
    for process in _processes():
        if process.state != "Z":
            children.setdefault(process.parent, []).append(process.pid)
    found, rest = set[int](), [os.getpid()]
    while rest:
        below = children.get(rest.pop(), [])
        found.update(below)
        rest += below
    return found


def _run_after(command: list[str]) -> None:
    if not command:
        return
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        quiet = subprocess.DEVNULL  # that the container is gone already is no news
        subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=AFTER_TIMEOUT_S, check=False)


def _remove(prefix: str) -> None:
    """Remove what killed processes leave: shared memory, and the Python backend's empty folders."""
    folders = set[Path]()
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        if fnmatch(claimed := region.name.removeprefix(prefix), FOLDERS):
            folders.add(TEMPORARY / claimed)
        with contextlib.suppress(OSError):
            if region.is_dir():  # of vLLM's sockets, which it leaves however it ends
                for file in region.iterdir():
                    file.unlink()
                region.rmdir()
            region.unlink(missing_ok=True)
    # of those that nobody claimed, what is older than every server that lives is nobody's
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    oldest = min((process.started_s for process in _processes() if process.name == SERVER_NAME), default=math.inf)
    folders.update(path for path in TEMPORARY.glob(FOLDERS) if 0 < _made(path) < boot + oldest)
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty, or another user's
            folder.rmdir()


def _sweep() -> None:
    """Remove what runs left whose kernel and reaper were killed; a name that a living process goes by stays."""
    left = {match[0]: match for name in os.listdir(SHARED_MEMORY) if (match := OWNED.match(name))}
    dead = {prefix for prefix, match in left.items() if match["space"] == namespace() and _is_dead(int(match["pid"]))}
    if not dead:
        return
    orphans = dict[str, list[int]]()
    for process in _processes():
        words = " ".join(_arguments(process.pid))
        for prefix in [prefix for prefix in dead if prefix in words]:
            parent = _process(process.parent)
            if process.name == STUB_NAME and (parent is None or parent.name != SERVER_NAME):
                orphans.setdefault(prefix, []).append(process.pid)
            else:
                dead.discard(prefix)
    for prefix in dead:
        for pid in orphans.get(prefix, []):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        _remove(prefix)


def namespace() -> str:
    """Return which processes this one sees: those of another container have the same numbers."""
    return f"{os.stat('/proc/self/ns/pid').st_ino:x}"


def _is_dead(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def _on_start() -> None:
    # if this process is killed, the server must not stay
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _ignore(_number: int, _frame: object) -> None:
    pass


def _work(command: list[str], prefix: str, after: list[str], keeper: int) -> int:
    """Run the command to its end, and return its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_on_start)
    try:
        with contextlib.suppress(OSError):
            _sweep()
        grace_s = _watch(child, keeper, prefix)
        if grace_s is not None and child.poll() is None:
            _end(child, grace_s)
    finally:
        _clean_up(prefix, after)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _clean_up(prefix: str, after: list[str]) -> None:
    steps: tuple[Callable[[], None], ...]
    steps = (lambda: _run_after(after), _end_descendants, lambda: _remove(prefix))  # the engine's own processes last
    with contextlib.ExitStack() as stack:  # each, whatever becomes of the one before it
        for step in reversed(steps):
            stack.callback(step)


def main() -> int:
    """Run the command, watch the pipe, end everything; return the exit code to pass on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ignore)  # the pipe decides; a handler, unlike SIG_IGN, is not inherited
    prefix, *command = sys.argv[1:]
    after = list[str]()
    if command[0] == "--after":
        after, command = json.loads(command[1]), command[2:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    keeper = os.getpid()
    worker = os.fork()
    if worker == 0:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # not inherited
        return _work(command, prefix, after, keeper)
    code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
    if code < 0:
        _clean_up(prefix, after)
        return 128 - code
    return code


if __name__ == "__main__":
    sys.exit(main())
