# SPDX-License-Identifier: Apache-2.0
"""Triton never notices that the process of a Python model died, nor that one lives that it gave up; the kit does."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ensemblekit.clients.grpc import ask
from ensemblekit.clients.http import ask_http
from ensemblekit.diagnose.explain.explainer import explain_log
from ensemblekit.errors import RequestError, ServerError
from ensemblekit.paths import RUN_DIR_VARIABLE
from tests.conftest import DATA, START_TIMEOUT_S, ServerMaker, slowdown

TOLD_S = 2.0
LATE_S = 60.0
STUB = "triton_python_backend_stub"
SLOW = """
import time
class TritonPythonModel:
    def initialize(self, args):
        print("loading slowly", flush=True)
        time.sleep(600)
"""
KILLED_ENGINE = """
import time
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def initialize(self, args):
        time.sleep(2)
        failed = "Failed core proc(s): {'EngineCore': -9}"
        raise pb_utils.TritonModelException(f"vLLM did not start: RuntimeError: See root cause above. {failed}")
"""
STANDS_STILL_ONCE = """
import os
import signal
import subprocess
from pathlib import Path
class TritonPythonModel:
    def initialize(self, args):
        once = Path({once!r})
        if not once.exists():
            once.touch()
            subprocess.Popen(["sh", "-c", "sleep 4; kill -CONT %d" % os.getpid()])
            os.kill(os.getpid(), signal.SIGSTOP)
"""
ENDS_SLOWLY = """
import time
class TritonPythonModel:
    def finalize(self):
        time.sleep(20)
"""

pytestmark = pytest.mark.server


def stubs_of(pid: int | None, model: str) -> list[int]:
    """Return the processes of a model below a process."""
    below = psutil.Process(pid).children(recursive=True)
    return [one.pid for one in below if STUB in one.name() and f"/{model}/" in " ".join(one.cmdline())]


def _wait(until: Callable[[], object], seconds: float = LATE_S) -> float:
    begin = time.monotonic()
    while not until():
        assert time.monotonic() - begin < seconds, "in vain"
        time.sleep(0.02)
    return time.monotonic() - begin


@pytest.fixture
def slow_repository(tmp_path: Path) -> Path:
    """A repository whose one model is still loading when its process is killed."""
    return _repository(tmp_path / "slow_repository", slow=SLOW)


def _repository(folder: Path, **models: str) -> Path:
    for name, code in models.items():
        (folder / name / "1").mkdir(parents=True)
        config = 'backend: "python"\ninstance_group [ { kind: KIND_CPU } ]\n'
        (folder / name / "config.pbtxt").write_text(config)
        (folder / name / "1" / "model.py").write_text(code)
    return folder


def test_process_that_dies_while_loading_ends_the_start(make_server: ServerMaker, slow_repository: Path) -> None:
    server, killed = make_server(slow_repository), list[float]()

    def kill() -> None:
        _wait(lambda: server.log_path.exists() and "loading slowly" in server.log_path.read_text())
        os.kill(stubs_of(server.pid, "slow")[0], signal.SIGKILL)
        killed.append(time.monotonic())

    threading.Thread(target=kill).start()
    with pytest.raises(ServerError) as caught:
        server.start(LATE_S, lambda each: killed.append(time.monotonic()) if killed and each.why_ended else None)
    told = time.monotonic()

    assert told - killed[0] < (TOLD_S + 1.0) * slowdown()  # until all that came of the server is gone, too
    told_by_triton = "Stub process 'slow_0_0' is not healthy"  # now and then, and then in the same second
    told_by_kit = re.search(r"the process of (a model|model slow) ended \(signal 9\)", caught.value.found)
    assert told_by_kit or told_by_triton in caught.value.found
    assert "dmesg" in caught.value.hint
    assert server.pid is None


def test_start_whose_engine_was_killed_does_not_wait_for_the_other_models_with_a_fake_engine(
    make_server: ServerMaker, tmp_path: Path
) -> None:
    server = make_server(_repository(tmp_path / "models", llm=KILLED_ENGINE, other=ENDS_SLOWLY))

    with pytest.raises(ServerError) as caught:
        server.start(LATE_S)

    assert "the process of vLLM's engine (EngineCore) ended (signal 9); the server was stopped" in caught.value.found
    assert "dmesg" in caught.value.hint
    assert "failed to load all models" not in server.log_path.read_text()  # Triton would have said so at the end


@pytest.mark.parametrize("client", [ask, ask_http])
def test_request_under_way_fails_and_names_the_process(
    make_server: ServerMaker, tmp_path: Path, client: Callable[..., object]
) -> None:
    server = make_server(DATA / "decoupled_repository").start(START_TIMEOUT_S)
    killed = list[float]()

    def kill() -> None:
        time.sleep(0.3)
        killed.append(time.monotonic())
        os.kill(stubs_of(server.pid, "words")[0], signal.SIGKILL)

    for stub in stubs_of(server.pid, "words"):
        os.kill(stub, signal.SIGSTOP)  # so that the request is under way when it dies
    threading.Thread(target=kill).start()
    with pytest.raises(RequestError) as caught:
        client(server, "Hello", timeout_s=LATE_S)

    assert time.monotonic() - killed[0] < TOLD_S * slowdown()
    assert "the process of model words ended (signal 9)" in caught.value.found
    _wait(lambda: not server.running)


def test_serve_ends_and_names_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ensemblekit.cli.main", "serve", "--engine", "stand-in", "--device", "cpu"]
    with (tmp_path / "serve.log").open("w") as log:
        serve = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {RUN_DIR_VARIABLE: str(tmp_path / "run")}
        )
    try:
        _wait(lambda: "Ready." in (tmp_path / "serve.log").read_text() or serve.poll() is not None)
        os.kill(stubs_of(serve.pid, "llm")[0], signal.SIGKILL)
        took = _wait(lambda: "the process of model llm ended" in (tmp_path / "serve.log").read_text())
        _wait(lambda: serve.poll() is not None)
    finally:
        serve.kill()

    text = (tmp_path / "serve.log").read_text()
    assert "Found: the process of model llm ended (signal 9)" in text
    assert took < TOLD_S * slowdown(), text


def test_process_that_triton_gave_up_and_waits_for_is_ended_and_the_start_made_again(
    make_server: ServerMaker, tmp_path: Path
) -> None:
    model = STANDS_STILL_ONCE.format(once=str(tmp_path / "once"))
    server = make_server(_repository(tmp_path / "models", still=model))

    outcome = server.attempt_start(START_TIMEOUT_S)

    assert (outcome.kind, outcome.gave_up) == ("ready", True)
    assert outcome.crashes >= 1  # a busy machine may spoil the next one, too
    given_up = server.log_path.with_name("server.crashed.log")
    assert "Triton waits in vain for the end of the process of model still: ended" in given_up.read_text()
    assert [cause.code for cause in explain_log(given_up).causes] == ["S465"]
