# SPDX-License-Identifier: Apache-2.0
"""Nothing outlives the kernel: the process that started a server is killed, and all that came of it ends."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ensemblekit.servers import _reaper
from tests.conftest import DATA, ServerMaker
from tests.faults.conftest import LONG

GONE_S = 15.0  # grace of the reaper, twice, and what the kernel takes
MOMENTS_S = (0.0, 0.25, 0.45, 0.7, 1.0, 1.6)  # after the parent begins to start: before the launch ... ready
READY_S = 30.0
SHARED_MEMORY = Path("/dev/shm")
KEEPER_AND_WORKER, STUB = 2, "triton_python_backend_stub"
STORMS = 6  # of which one or two ended the old reaper before it removed anything
PARENT = """
import sys, time
from pathlib import Path
from ensemblekit.releases import get_release
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import TritonServer
folder = Path(sys.argv[1])
installation = install_embedded(get_release("24.08"), "base-plus-vllm", folder)
server = TritonServer(installation, Path(sys.argv[2]), folder)
(folder / "prefix").write_text(server._shm_prefix)
print("starting", flush=True)
server.start(60)
print("ready", flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.server


class Kernel:
    """A process that starts a server, as a notebook's kernel does."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder = folder
        folder.mkdir()
        command = [sys.executable, "-c", PARENT, str(folder), str(repository)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def wait_for(self, word: str) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline().strip() == word

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def left(self) -> list[str]:
        """Return the command lines of processes that came of it, and its shared memory."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = " ".join(process.info["cmdline"] or [])
            if str(self.folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(line)
        prefix = self.folder / "prefix"
        return found + [path.name for path in SHARED_MEMORY.glob(f"{prefix.read_text()}*")]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel that is about to start a server."""
    made = Kernel(tmp_path / "kernel", DATA / "report_repository")
    made.wait_for("starting")
    yield made
    made.kill()


def _wait_until_gone(kernel: Kernel) -> list[str]:
    deadline = time.monotonic() + GONE_S
    while (left := kernel.left()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.parametrize("moment_s", MOMENTS_S)
def test_kernel_killed_while_starting_leaves_nothing(kernel: Kernel, moment_s: float) -> None:
    before = _environments()
    time.sleep(moment_s)

    kernel.kill()

    assert _wait_until_gone(kernel) == []
    assert _environments() <= before


def test_kernel_killed_with_a_ready_server_leaves_nothing(kernel: Kernel) -> None:
    kernel.wait_for("ready")
    assert any("triton_python_backend_stub" in line for line in kernel.left())

    kernel.kill()

    assert _wait_until_gone(kernel) == []


def test_folder_of_a_killed_server_goes_while_another_server_lives(tmp_path: Path) -> None:
    """The Python backend makes it, and does not say whose it is; a second later another server made another."""
    kernels = []
    try:
        for name in ("living", "killed"):
            kernels.append(Kernel(tmp_path / name, DATA / "report_repository"))
            kernels[-1].wait_for("starting")
            kernels[-1].wait_for("ready")
        of_living, of_killed = map(_claimed, kernels)

        kernels[1].kill()

        assert _wait_until_gone(kernels[1]) == []
        assert not of_killed.exists()
        assert of_living.is_dir()
    finally:
        for kernel in kernels:
            kernel.kill()


def _claimed(kernel: Kernel) -> Path:
    """Return the folder that a server's reaper knows to be its server's."""
    prefix = (kernel.folder / "prefix").read_text()
    deadline = time.monotonic() + READY_S
    while not (found := list(SHARED_MEMORY.glob(f"{prefix}{_reaper.FOLDERS}"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    (claim,) = found
    folder = _reaper.TEMPORARY / claim.name.removeprefix(prefix)
    assert folder.is_dir()
    return folder


def _environments() -> set[Path]:
    """Return the folders that Python backends made; other servers on this machine may make some meanwhile."""
    return set() if _other_servers() else set(Path("/tmp").glob("python_env_*"))


def _other_servers() -> bool:
    return any(process.info["name"] == "tritonserver" for process in psutil.process_iter(["name"]))


def _reapers(kernel: Kernel) -> list[psutil.Process]:
    """Return the keeper and its worker, once the server is there or beyond."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):  # and zombies
            below = psutil.Process(kernel.process.pid).children(recursive=True)
            found = [child for child in below if _reaper.__file__ in child.cmdline()]
            if len(found) == KEEPER_AND_WORKER and any(STUB in child.name() for child in below):
                return found
        time.sleep(0.01)
    pytest.fail("no reaper with a server whose models load")


@pytest.mark.parametrize("moment", ["loading", "ready"])
@pytest.mark.parametrize("number", range(KEEPER_AND_WORKER), ids=["keeper", "worker"])
def test_reaper_killed_ends_the_server_and_its_models(kernel: Kernel, number: int, moment: str) -> None:
    if moment == "ready":
        kernel.wait_for("ready")

    _reapers(kernel)[number].kill()
    kernel.kill()

    assert _wait_until_gone(kernel) == []


def test_next_start_removes_what_a_run_left_whose_reaper_was_killed_too(kernel: Kernel, tmp_path: Path) -> None:
    reapers = _reapers(kernel)
    for reaper in reapers:  # none can come to the other's help
        reaper.suspend()
    for reaper in reversed(reapers):
        reaper.kill()
    kernel.kill()
    assert kernel.left()

    after = Kernel(tmp_path / "after", DATA / "report_repository")
    after.wait_for("starting")
    after.wait_for("ready")
    try:
        assert kernel.left() == []
    finally:
        after.kill()
    assert _wait_until_gone(after) == []


def test_sweep_keeps_what_a_living_process_goes_by() -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    region = SHARED_MEMORY / f"ensemblekit-{_reaper.namespace()}.{ended.pid}-0123abcd-region"
    elsewhere = SHARED_MEMORY / f"ensemblekit-1.{ended.pid}-0123abcd-of-another-container"
    sockets = region.with_name(f"{region.name}-sockets")
    region.touch()
    elsewhere.touch()
    sockets.mkdir()
    (sockets / "one").touch()
    try:
        with subprocess.Popen([sys.executable, "-c", "input()", region.name], stdin=subprocess.PIPE) as living:
            _run_reaper("true").communicate(timeout=GONE_S)
            assert region.exists()
            living.kill()
        _run_reaper("true").communicate(timeout=GONE_S)

        assert not region.exists()
        assert not sockets.exists()
        assert elsewhere.exists()
    finally:
        region.unlink(missing_ok=True)
        elsewhere.unlink()


def test_processes_that_come_and_go_while_the_reaper_ends_them_leave_nothing() -> None:
    prefix = f"ensemblekit-storm-{os.getpid()}-"
    forks = f"while :; do (echo > {SHARED_MEMORY}/{prefix}$n; sleep 0.00$n) & sleep 0.001; done"
    storm = f"for n in 1 2 3; do ({forks}) & done; echo up; wait"
    for _ in range(STORMS):
        reaper = _run_reaper("sh", "-c", storm, prefix=prefix)
        assert reaper.stdout
        reaper.stdout.readline()
        time.sleep(0.1)

        reaper.communicate(timeout=GONE_S)

        assert list(SHARED_MEMORY.glob(f"{prefix}*")) == []


@pytest.mark.slow
def test_kernels_killed_at_random_moments_leave_nothing(tmp_path: Path) -> None:
    dice = random.Random(7632)
    kernels = []
    for number in range(20 if LONG else 6):
        kernel = Kernel(tmp_path / f"kernel-{number}", DATA / "report_repository")
        kernel.wait_for("starting")
        time.sleep(dice.uniform(0, 3))
        kernel.kill()
        kernels.append(kernel)

    assert [line for kernel in kernels for line in _wait_until_gone(kernel)] == []


def _run_reaper(*command: str, prefix: str = "ensemblekit-test-none-") -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-P", _reaper.__file__, prefix, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize(("code", "expected"), [("exit 3", 3), ("kill -9 $$", 137)], ids=["exits", "killed"])
def test_reaper_passes_on_how_the_command_ended(code: str, expected: int) -> None:
    with _run_reaper("sh", "-c", code) as reaper:
        assert reaper.wait(GONE_S) == expected


STAND_IN_SERVER = """
import ctypes, os, signal, sys, threading, time
stub = os.fork()
if stub == 0:
    ctypes.CDLL(None).prctl(15, b"triton_python_backend_stub")
    exec(sys.argv[1])
time.sleep(2)
os.waitpid(stub, 0)
sys.exit(7)
"""
# a process whose memory takes a while to be given back: its first thread is gone, others are not
ABOUT_TO_END = "threading.Thread(target=lambda: [time.sleep(3), os._exit(1)]).start(); ctypes.CDLL(None).syscall(60, 0)"


@pytest.mark.parametrize(
    ("stub", "expected"),
    [
        ("os._exit(0)", 7),
        (ABOUT_TO_END, 7),
        ("time.sleep(1), os._exit(1)", 143),
        ("os.execv('/bin/sh', ['sh', '-c', 'exit 1'])", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", 143),
        # Triton starts a stub through a shell, which becomes it
        ("os.execv('/bin/sh', ['sh', '-c', 'kill -9 $$'])", 143),
    ],
    ids=["ends-in-order", "is-about-to-end", "exits", "is-only-a-trial", "is-killed", "is-killed-as-a-shell"],
)
def test_stand_in_server_that_waits_late_for_its_stub(stub: str, expected: int) -> None:
    with _run_reaper(sys.executable, "-c", STAND_IN_SERVER, stub) as reaper:
        assert reaper.wait(GONE_S) == expected


def test_reaper_pipe_closed_ends_grandchildren_in_sessions_of_their_own() -> None:
    stubborn = "trap '' TERM HUP; echo $$; while :; do sleep 0.1; done"
    with _run_reaper("sh", "-c", f'setsid sh -c "{stubborn.replace("$", chr(92) + "$")}" & wait') as reaper:
        assert reaper.stdout
        grandchild = int(reaper.stdout.readline())
        assert os.getsid(grandchild) == grandchild
        assert reaper.stdin
        reaper.stdin.close()

        reaper.wait(GONE_S)

    assert not psutil.pid_exists(grandchild)


def test_reaper_interrupted_like_a_notebook_cell_keeps_the_server() -> None:
    with _run_reaper("sh", "-c", "echo up; sleep 600") as reaper:
        assert reaper.stdout
        reaper.stdout.readline()

        reaper.send_signal(signal.SIGINT)
        time.sleep(0.3)

        assert reaper.poll() is None
        assert reaper.stdin
        reaper.stdin.close()
        reaper.wait(GONE_S)


def test_stop_leaves_no_folder_of_the_python_backend(make_server: ServerMaker, report_repository: Path) -> None:
    before = _environments()

    make_server(report_repository).start(READY_S).stop()

    assert _environments() <= before
