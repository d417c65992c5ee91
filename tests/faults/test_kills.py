# SPDX-License-Identifier: Apache-2.0
"""Kill any process at any moment: the user is told, nothing is left behind, the next run works."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from ensemblekit.clients.grpc import ask
from ensemblekit.errors import KitError
from ensemblekit.paths import repo_root
from ensemblekit.servers.attach import AttachedServer
from tests.conftest import slowdown
from tests.faults.conftest import LONG, Report

BIN = Path(sys.executable).parent
MARK = "ENSEMBLEKIT_FAULTS_RUN"  # inherited by all that comes of a command
SHARED_MEMORY = Path("/dev/shm")
OWNER = re.compile(r"\.(\d+)-")  # in its name
ENVIRONMENTS = Path("/tmp")  # fixed in the Python backend
TRIALS = int(os.environ.get("ENSEMBLEKIT_FAULTS_KILLS", "25")) if LONG else 1  # of each kind
LATEST_S = 6.0 if LONG else 4.0
ENGINE_LATEST_S = 30.0  # vLLM's engine takes that long to load
SEED = time.time_ns() if LONG else 0
RUN = ("ensemblekit", "run", "--quick", "--only", "01")
SERVE = ("ensemblekit", "serve", "--engine", "stand-in", "--device", "cpu")
SERVE_VLLM = (*SERVE[:3], "vllm", *SERVE[4:])
LESSON = str(repo_root() / "notebooks" / "01_reproduce_the_failure.ipynb")
PAPERMILL = ("papermill", LESSON, os.devnull, "-p", "ENGINE", "stand-in", "--no-progress-bar")
# nbval does not notice that its kernel died: it waits until a cell's time is over
NBVAL = ("pytest", "--nbval-lax", "--nbval-cell-timeout=30", "-q", "-p", "no:cacheprovider", "-c", os.devnull, LESSON)
# what stands in the command line of a victim; `serve` and the runner are the command itself
VICTIMS: dict[str, tuple[tuple[str, ...], Callable[[str], bool]]] = {
    "runner": (RUN, lambda line: "ensemblekit" in line and " run " in f"{line} "),
    "kernel": (RUN, lambda line: "ipykernel_launcher" in line),
    "server of a lesson": (RUN, lambda line: "bin/tritonserver" in line and "_reaper.py" not in line),
    "stub of a lesson": (RUN, lambda line: "triton_python_backend_stub" in line),
    "reaper of a lesson": (RUN, lambda line: "_reaper.py" in line),
    "serve": (SERVE, lambda line: "ensemblekit" in line and " serve " in f"{line} "),
    "server of serve": (SERVE, lambda line: "bin/tritonserver" in line and "_reaper.py" not in line),
    "stub of serve": (SERVE, lambda line: "triton_python_backend_stub" in line),
    "reaper of serve": (SERVE, lambda line: "_reaper.py" in line),
    "papermill": (PAPERMILL, lambda line: "bin/papermill" in line),
    "kernel of papermill": (PAPERMILL, lambda line: "ipykernel_launcher" in line),
    "nbval": (NBVAL, lambda line: "--nbval-lax" in line),
    "kernel of nbval": (NBVAL, lambda line: "ipykernel_launcher" in line),
    "EngineCore that loads": (SERVE_VLLM, lambda line: "EngineCore" in line),
    "EngineCore that serves": (SERVE_VLLM, lambda line: "EngineCore" in line),
}
LONG_ONLY = {
    "kernel of nbval": "nbval waits for the end of the cell's time",
    "EngineCore that loads": "vLLM takes its time to load",
    "EngineCore that serves": "test_vllm_backend.py kills one, too",
}
TOLD = ("Report: ", "Could not ", "Kernel died", "DeadKernelError", " failed", " passed")
FOUND_S, READY_S, ENDED_S, GONE_S = 300.0, 300.0, 180.0, 30.0
TOLD_S = 5.0
ENDS = b"(EngineCore) ended: the server is ended"
ADDRESS = re.compile(r"--url (\S+)\n")  # in what `serve` says once it is ready
ANSWER_S = 2.0

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(3600)]


def of_the_command(mark: str) -> list[psutil.Process]:
    """Return every process that came of a command, whoever its parent is now."""
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if process.info["status"] != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found


def matching(mark: str, is_victim: Callable[[str], bool]) -> list[psutil.Process]:
    """Return the command's processes of one kind."""
    found = []
    for process in of_the_command(mark):
        try:
            if is_victim(" ".join(process.cmdline())):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    """Return whether something came true in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def left_behind(mark: str, temporary: Path) -> set[Path]:
    """Return what servers and kernels of a command leave when nobody tidies up; other servers here do not count."""
    left = {region for region in SHARED_MEMORY.glob("ensemblekit-*") if not _is_of_a_stranger(region.name, mark)}
    # which server a folder of the Python backend belongs to cannot be seen: with another one here, they stay
    alone = not any(process.info["name"] == "tritonserver" for process in psutil.process_iter(["name"]))
    return {*left, *temporary.glob("kernel-*.json"), *(ENVIRONMENTS.glob("python_env_*") if alone else ())}


def _is_of_a_stranger(region: str, mark: str) -> bool:
    """Return whether shared memory is named after a process that lives and did not come of the command."""
    owner = OWNER.search(region)
    try:
        return owner is not None and psutil.Process(int(owner[1])).environ().get(MARK) != mark
    except psutil.Error:
        return False


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_process_leaves_nothing_and_the_user_is_told(victim: str, report: Report, tmp_path: Path) -> None:
    words, is_victim = VICTIMS[victim]
    if victim in LONG_ONLY and not LONG:
        pytest.skip(f"the long form: {LONG_ONLY[victim]}")
    if words is SERVE_VLLM and find_spec("vllm") is None:
        pytest.skip("needs vLLM: the CPU or CUDA environment, not the quick one")
    latest_s = ENGINE_LATEST_S if victim == "EngineCore that loads" else LATEST_S
    for trial in range(TRIALS):
        moment_s = random.Random(f"{victim}{trial}{SEED or ''}").uniform(0, latest_s)
        held, told_s = _kill_one(
            words, is_victim, moment_s, tmp_path / str(trial), ready=victim == "EngineCore that serves"
        )
        report.count(f"kill -9 of {victim}", held, **({} if told_s is None else {"told_s": told_s}))
        assert held, f"{victim}, {moment_s:.2f} s after it was seen"


def _kill_one(
    words: tuple[str, ...], is_victim: Callable[[str], bool], moment_s: float, folder: Path, *, ready: bool
) -> tuple[bool, float | None]:
    temporary, mark = folder / "tmp", str(folder)
    temporary.mkdir(parents=True)
    before = left_behind(mark, temporary)
    output = folder / "output"
    more = ["--runs-dir", str(folder / "runs")] if words is RUN else []
    own = {MARK: mark, "ENSEMBLEKIT_RUN_DIR": str(folder / "run"), "TMPDIR": str(temporary)}
    own["SPT_NOENV"] = "1"  # a process that renames itself keeps its variables, and so the mark
    with output.open("wb") as file:
        command = subprocess.Popen(
            [BIN / words[0], *words[1:], *more],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | own,
            start_new_session=True,
        )
    try:
        assert wait_until(lambda: bool(matching(mark, is_victim)) or command.poll() is not None, FOUND_S)
        if ready:
            assert wait_until(lambda: b"Ready" in output.read_bytes() or command.poll() is not None, READY_S)
        time.sleep(moment_s)
        victims = matching(mark, is_victim)
        killed = bool(victims)
        if killed:
            victims[0].send_signal(signal.SIGKILL)
        began = time.monotonic()
        # vLLM's processes take longer to end than `serve` to say why it ends them
        wait_until(
            lambda: command.poll() is not None or ENDS in output.read_bytes() or _answers(output.read_text()), ENDED_S
        )
        told_s = time.monotonic() - began
        harmless = killed and command.poll() is None and _answers(output.read_text())
        if harmless:
            command.terminate()
        ended = wait_until(lambda: command.poll() is not None, ENDED_S)
        gone = wait_until(lambda: not of_the_command(mark) and left_behind(mark, temporary) <= before, GONE_S)
    finally:
        rest = of_the_command(mark)
        for process in rest:
            process.kill()
    text = output.read_text(errors="replace")
    itself = command.returncode == -signal.SIGKILL
    # a lesson goes on, or its run ends with a report; a `serve` whose server died ends at once with the reason
    said = itself or harmless or any(word in text for word in TOLD)
    serving = words in (SERVE, SERVE_VLLM) and killed and not itself and not harmless
    if not (ended and gone and said):
        left = left_behind(mark, temporary) - before
        print(f"ended {ended}, gone {gone}, said {said}; left {rest} {left}\n{text[-2000:]}")
    in_time = not serving or told_s < TOLD_S * slowdown()
    return ended and gone and said and in_time, told_s if serving else None


def _answers(said: str) -> bool:
    """Return whether a server that said where it is answers, so that the killed process was needed no more.

    Triton starts a Python model twice: first a process that only completes the configuration, then the one that serves.
    Killed when it has done its work, the first one is not missed.
    """
    address = ADDRESS.search(said)
    if address is None:
        return False
    try:
        return bool(ask(AttachedServer.at(address[1]), "Hello", timeout_s=ANSWER_S).text)
    except KitError:
        return False


def test_next_run_works(report: Report, tmp_path: Path) -> None:
    done = subprocess.run(
        [BIN / RUN[0], *RUN[1:], "--runs-dir", tmp_path], capture_output=True, text=True, timeout=1200, check=False
    )
    report.count("the run after all kills", done.returncode == 0)

    assert done.returncode == 0, done.stdout + done.stderr
