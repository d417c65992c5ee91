# SPDX-License-Identifier: Apache-2.0
"""The process of the backend's engine: it imports at once, runs what it is told later, and ends with its parent."""

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import spawn
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.unit import backend_support
from tests.unit.backend_support import wait_for

LONG_S = 120.0
GONE_WITHIN_S = 10.0  # less than the process would run by itself
LIGHT = "fractions"  # a module that no start of Python imports


@pytest.fixture
def engine_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    backend_support.install(monkeypatch)
    return importlib.import_module("triton_vllm.engine_process")


def say_who_it_is(place: Path, queue: Any = None) -> None:
    """Run in the engine's process: write down what it is, and start a process of its own."""
    import setproctitle

    setproctitle.setproctitle("VLLM::EngineCore")
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
    child.start()
    child.join()
    known = {
        "pid": os.getpid(),
        "environment": dict(os.environ),
        "name": multiprocessing.current_process().name,
        "title": psutil.Process().name(),
        "imported": LIGHT in sys.modules,
        "child": child.exitcode,
        "queue": queue is not None,
    }
    place.write_text(json.dumps(known))


def end_with(code: int) -> None:
    sys.exit(code)


def run(process: Any) -> Any:
    process.start()
    process.join(LONG_S)
    return process.exitcode


def early_pid(early: Any) -> int:
    return int(early._early.pid)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_process_that_imported_early_is_like_one_started_only_now(
    engine_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAS_THERE", "once")
    early = engine_process.EarlyImport(LIGHT)
    pid = early_pid(early)
    monkeypatch.delenv("WAS_THERE")
    monkeypatch.setenv("CAME_LATER", "yes")

    process = early.Process(target=say_who_it_is, name="EngineCore_DP0", kwargs={"place": tmp_path / "early"})
    new = early.Process(target=say_who_it_is, name="EngineCore_DP1", kwargs={"place": tmp_path / "new"})

    assert [run(process), run(new)] == [0, 0]
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("early", "new"))
    assert (first["pid"], first["name"], first["imported"]) == (pid, "EngineCore_DP0", True)
    assert (second["pid"] != pid, second["name"], second["imported"]) == (True, "EngineCore_DP1", False)
    for environment in (first["environment"], second["environment"]):
        assert os.environ.items() <= environment.items()  # importing pytest's own program adds to it
        assert "WAS_THERE" not in environment
    assert [(known["title"], known["child"]) for known in (first, second)] == [("VLLM::EngineCore", 0)] * 2


def test_exit_code_and_signal_of_the_process_are_told(engine_process: Any) -> None:
    process = engine_process.EarlyImport(LIGHT).Process(target=end_with, name="EngineCore", kwargs={"code": 3})
    killed = engine_process.EarlyImport(LIGHT).Process(target=time.sleep, name="EngineCore", kwargs={})
    killed.kill()
    killed.join(LONG_S)

    assert (run(process), killed.exitcode) == (3, -signal.SIGKILL)


@pytest.mark.parametrize("why", ["killed", "queue", "program in front", "linker"])
def test_new_process_runs_what_the_early_one_cannot(
    engine_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    early = engine_process.EarlyImport(LIGHT)
    old, kwargs = psutil.Process(early_pid(early)), {"place": tmp_path / "known"}
    if why == "queue":
        kwargs["queue"] = multiprocessing.get_context("spawn").Queue()
    process = early.Process(target=say_who_it_is, name="EngineCore", kwargs=kwargs)
    if why == "killed":
        old.kill()
        process.join(LONG_S)
    elif why == "program in front":  # as vLLM does between making a process and starting it
        in_front = tmp_path / "python"
        in_front.write_text(f'#!/bin/sh\nIN_FRONT=yes exec "{sys.executable}" "$@"\n')
        in_front.chmod(0o755)
        monkeypatch.setattr(spawn, "_python_exe", os.fsencode(in_front))
    elif why == "linker":
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    assert run(process) == 0

    known = json.loads((tmp_path / "known").read_text())
    assert (known["pid"] != old.pid, known["imported"]) == (True, False)
    assert known["queue"] == (why == "queue")
    assert ("IN_FRONT" in known["environment"]) == (why == "program in front")
    assert (known["name"], known["child"]) == ("EngineCore", 0)
    assert gone(old.pid)


def test_process_that_ends_while_it_is_told_what_to_run_is_seen_to_have_ended(engine_process: Any) -> None:
    early = engine_process.EarlyImport(LIGHT)
    old = psutil.Process(early_pid(early))
    old.suspend()
    more_than_a_pipe_holds = {"seconds": "x" * (1 << 20)}
    process = early.Process(target=time.sleep, name="EngineCore", kwargs=more_than_a_pipe_holds)
    threading.Timer(0.5, old.kill).start()

    assert run(process) == -signal.SIGKILL


@pytest.mark.parametrize("options", [{}, {"kwargs": {}, "daemon": True}])
def test_process_is_new_if_it_is_asked_for_in_another_way(engine_process: Any, options: dict[str, Any]) -> None:
    with engine_process.EarlyImport(LIGHT) as early:
        old = early_pid(early)
        process = early.Process(target=end_with, args=(4,), **options)

        assert (run(process), process.pid != old, psutil.pid_exists(old)) == (4, True, True)
    assert not psutil.pid_exists(old)


@pytest.mark.parametrize(("method", "taken"), [("spawn", True), ("fork", False), (None, False)])
def test_vllm_is_offered_the_process_where_it_would_start_a_new_one(
    engine_process: Any, monkeypatch: pytest.MonkeyPatch, method: str | None, taken: bool
) -> None:
    chosen = multiprocessing.get_context(method) if method else None
    utils = SimpleNamespace(get_mp_context=lambda: chosen) if method else SimpleNamespace()
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.utils", utils)

    with engine_process.EarlyImport(LIGHT) as early:
        pid = early_pid(early)
        early.offer()
        if method:
            process = utils.get_mp_context().Process(target=end_with, name="EngineCore", kwargs={"code": 3})
            assert (run(process), process.pid == pid) == (3, taken)

    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("end", ["", "os.kill(os.getpid(), 9)"])
def test_process_that_got_nothing_to_run_ends_with_its_parent(end: str) -> None:
    code = (
        f"import os, sys\nsys.path.append({str(backend_support.BACKEND)!r})\n"
        "from triton_vllm.engine_process import EarlyImport\n"
        f"early = EarlyImport({LIGHT!r})\nprint(early._early.pid, flush=True)\n{end}\n"
    )

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG_S, check=False)

    wait_for(lambda: gone(int(ended.stdout)), LONG_S)
    assert ended.stderr == ""


def test_engine_process_ends_when_its_parent_is_killed() -> None:
    starter = backend_support.BACKEND / "triton_vllm" / "engine_process.py"
    assert os.access(starter, os.X_OK)
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, {str(starter)!r}, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        # the Python it was asked for
        wait_for(lambda: child.cmdline()[1:] == ["-c", "import time; time.sleep(60)"], GONE_WITHIN_S)
        parent.send_signal(signal.SIGKILL)

    wait_for(lambda: gone(child.pid), GONE_WITHIN_S)
