# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit build-plan run` against a stand-in for upstream's build.py and Docker; the server probed is real."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ensemblekit.releases import Flavour, get_release
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.workarounds.source_build import BuildLine, read_record
from tests.conftest import DATA

pytestmark = pytest.mark.server
RUN_TIMEOUT_S = 120.0  # a few seconds on an idle machine
TAG = "localhost_ensemblekit_tritonserver_24.08-custom-build"


class StandIn:
    """A source tree with the stand-in build.py, a stand-in docker first on PATH, and the command that uses them."""

    def __init__(self, folder: Path, server: Flavour) -> None:
        self.source, self.state, self.work = folder / "source", folder / "docker", folder / "work"
        self.source.mkdir()
        self.state.mkdir()
        shutil.copy(DATA / "stand_in_build" / "build.py", self.source)
        shutil.copy(DATA / "stand_in_build" / "docker", folder / "docker-program")
        (folder / "bin").mkdir()
        (folder / "bin" / "docker").symlink_to(folder / "docker-program")
        installation = install_embedded(get_release("24.08"), server, folder / "server")
        about = {"binary": str(installation.binary), "environment": installation.environment}
        (self.state / "server.json").write_text(json.dumps(about))
        path = f"{folder / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "STAND_IN_DOCKER": str(self.state), "COLUMNS": "200"}

    def start(self, *words: str, pace_s: float = 0.0) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "ensemblekit.cli.main", "build-plan", "run", "--anyway"]
        command += ["--source", str(self.source), "--work", str(self.work), *words]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.source,
            env=self.environment | {"STAND_IN_PACE_S": str(pace_s)},
            # a shell's background job, such as a CI step, inherits that Ctrl-C is ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        output, errors = process.communicate(timeout=RUN_TIMEOUT_S)
        return process.returncode, output, errors

    @property
    def lines(self) -> list[BuildLine]:
        return read_record(self.work / "build.json").lines

    @property
    def finished(self) -> int:
        return sum(line.finished for line in self.lines)

    @property
    def calls(self) -> list[str]:
        return (self.state / "calls.log").read_text().splitlines()

    def fail_at(self, name: str) -> None:
        (self.state / "fail").write_text(name)

    def left_over(self) -> list[psutil.Process]:
        """Every process that came of the command, found by the variable that only it was given."""
        return [process for process in psutil.process_iter() if _environment(process) == str(self.state)]


def _environment(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("STAND_IN_DOCKER")
    except psutil.Error:
        return None


@pytest.fixture
def stand_in(tmp_path: Path) -> StandIn:
    """A stand-in whose result is a real server with ensembles."""
    return StandIn(tmp_path, "custom-build")


def test_stand_in_build_that_fails_in_the_middle_says_so_once_and_resumes_there(stand_in: StandIn) -> None:
    stand_in.fail_at("tritonserver_builder")

    code, output, errors = stand_in.run()

    assert code == 1, errors
    assert [line.finished for line in stand_in.lines] == [True, *[False] * 5]
    assert "line 2 of 6, docker run tritonserver_builder: begins, attempt 1" in output
    assert "done before" not in output
    assert errors.count("Could not ") == errors.count("Hint: ") == 1
    assert "finish line 2 of 6, docker run tritonserver_builder, of the build" in errors
    assert "file_10.cc:7:1: error: 'ensemble' was not declared" in errors
    assert f"Log: {stand_in.work / 'build.log'}" in errors
    assert "it goes on with this line" in errors
    assert "Traceback" not in errors
    assert not stand_in.left_over()

    (stand_in.state / "fail").unlink()
    code, output, errors = stand_in.run()

    assert code == 0, errors
    assert stand_in.finished == 6
    assert [line.attempts for line in stand_in.lines] == [1, 2, 1, 1, 1, 1]
    assert output.count(", not repeated") == 1
    assert sum("build -t tritonserver_buildbase" in call for call in stand_in.calls) == 1
    assert sum(call.startswith("run -w") for call in stand_in.calls) == 1
    assert "start --attach tritonserver_builder" in stand_in.calls
    assert (stand_in.work / "build.log").read_text().count("file_9.cc.o") == 1  # compiled once, in the first attempt
    assert "24.08-custom-build knows ensembles" in output


def test_stand_in_build_is_timed_and_named_and_what_is_gone_is_built_again(stand_in: StandIn) -> None:
    code, output, errors = stand_in.run("--variant", "full")

    assert code == 0, errors
    assert all(line.seconds > 0 for line in stand_in.lines)
    assert len(re.findall(r"line \d of 6, docker .*: done after \d+\.\d s", output)) == 6
    assert (stand_in.state / "images" / TAG).read_text() == (stand_in.state / "images" / "tritonserver").read_text()
    assert any("--label=ensemblekit.run=build-plan" in call for call in stand_in.calls if " tritonserver " in call)

    (stand_in.state / "images" / "tritonserver").unlink()
    code, output, errors = stand_in.run("--variant", "full")

    assert code == 0, errors
    assert re.search(r"line 4 of 6, docker cp .*: done before in \d+ s, not repeated", output)
    assert "line 5 of 6, docker build tritonserver: begins, attempt 2" in output
    assert "line 6 of 6, docker build tritonserver_cibase: begins, attempt 2" in output


def test_stand_in_build_interrupted_leaves_no_process_and_goes_on_later(stand_in: StandIn) -> None:
    process = stand_in.start(pace_s=0.3)
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while not (stand_in.state / "containers").is_dir() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert stand_in.lines[1].attempts == 1  # written while it runs
    assert len(stand_in.left_over()) >= 3

    process.send_signal(signal.SIGINT)
    _output, errors = process.communicate(timeout=RUN_TIMEOUT_S)

    assert process.returncode == 130, errors
    assert errors == "Stopped. The same command goes on with the line that was interrupted.\n"
    assert not stand_in.left_over()
    assert [line.finished for line in stand_in.lines[:2]] == [True, False]
    assert "stop -t 5 tritonserver_builder" in stand_in.calls

    code, output, errors = stand_in.run()

    assert code == 0, errors
    assert re.search(r"line 1 of 6, docker build tritonserver_buildbase: done before in \d+ s, not repeated", output)


def test_stand_in_build_whose_server_knows_no_ensembles_gets_no_name(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, "vllm-image")

    code, output, errors = stand_in.run()

    assert code == 1
    assert "verdict:  no, it does not know ensembles" in errors
    assert not (stand_in.state / "images" / TAG).exists()
    assert "knows ensembles" not in output


def test_stand_in_build_dry_run_writes_the_scripts_and_asks_docker_nothing(stand_in: StandIn) -> None:
    code, output, errors = stand_in.run("--dryrun")

    assert code == 0, errors
    assert stand_in.finished == 0
    assert (stand_in.source / "build" / "docker_build").is_file()
    assert "TRITON_ENABLE_ENSEMBLE:BOOL=ON" in (stand_in.source / "build" / "cmake_build").read_text()
    assert not (stand_in.state / "calls.log").exists()
    assert "knows ensembles" not in output
