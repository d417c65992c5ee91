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
from ensemblekit.workarounds.build_meter import Meter
from ensemblekit.workarounds.build_scripts import STAGES
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
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.source,
            env=self.environment | {"STAND_IN_PACE_S": str(pace_s)},
        )  # fmt: skip

    def run(self, *words: str) -> tuple[int, str, str]:
        process = self.start(*words)
        output, errors = process.communicate(timeout=RUN_TIMEOUT_S)
        return process.returncode, output, errors

    @property
    def meter(self) -> Meter:
        return Meter.model_validate_json((self.work / "meter.json").read_bytes())

    @property
    def states(self) -> list[str]:
        return [self.meter.stages[stage].state for stage in STAGES]

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
    assert stand_in.states == ["done", "done", "done", "failed", *["waiting"] * 4]
    assert "4/8 cmake_build: begins, attempt 1" in output
    assert "done before" not in output
    assert errors.count("Could not ") == errors.count("Hint: ") == 1
    assert "finish stage 4 of 8 of the build, cmake_build" in errors
    assert "file_10.cc:7:1: error: 'ensemble' was not declared" in errors
    assert f"Log: {stand_in.work / 'build.log'}" in errors
    assert "goes on compiling where it stopped" in errors
    assert "Traceback" not in errors
    assert not stand_in.left_over()

    (stand_in.state / "fail").unlink()
    code, output, errors = stand_in.run()

    assert code == 0, errors
    assert stand_in.states == ["done"] * 8
    assert [stand_in.meter.stages[stage].attempts for stage in STAGES] == [0, 1, 1, 2, 1, 1, 1, 1]
    assert output.count("done before, not repeated") == 3
    assert sum("build -t tritonserver_buildbase" in call for call in stand_in.calls) == 1
    assert sum(call.startswith("run -w") for call in stand_in.calls) == 1
    assert "start --attach tritonserver_builder" in stand_in.calls
    assert (stand_in.work / "build.log").read_text().count("file_9.cc.o") == 1  # compiled once, in the first attempt
    assert f"{stand_in.meter.release}-custom-build knows ensembles" in output


def test_stand_in_build_is_metered_and_named_and_what_is_gone_is_built_again(stand_in: StandIn) -> None:
    code, _output, errors = stand_in.run("--variant", "full")

    assert code == 0, errors
    meter = stand_in.meter
    assert all(meter.stages[stage].seconds > 0 for stage in STAGES[1:])
    assert meter.stages["artifacts"].build_folder_gb > 0.005  # two copies of 3 MB
    assert meter.stages["dryrun"].build_folder_gb < 0.001
    assert "--filesystem=gcs" in meter.command
    assert (stand_in.state / "images" / TAG).read_text() == (stand_in.state / "images" / "tritonserver").read_text()
    assert any("--label=ensemblekit.run=build-plan" in call for call in stand_in.calls if " tritonserver " in call)

    (stand_in.state / "images" / "tritonserver").unlink()
    code, output, errors = stand_in.run("--variant", "full")

    assert code == 0, errors
    assert "5/8 artifacts: done before, not repeated" in output
    assert "6/8 tritonserver: begins, attempt 2" in output
    assert "7/8 tritonserver_cibase: begins, attempt 1" in output


def test_stand_in_build_interrupted_leaves_no_process_and_goes_on_later(stand_in: StandIn) -> None:
    process = stand_in.start(pace_s=0.3)
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while not (stand_in.state / "containers").is_dir() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert stand_in.meter.stages["cmake_build"].state == "running"  # written while it runs
    assert len(stand_in.left_over()) >= 3

    process.send_signal(signal.SIGINT)
    _output, errors = process.communicate(timeout=RUN_TIMEOUT_S)

    assert process.returncode == 130, errors
    assert errors == "Stopped. The same command goes on with the stage that was interrupted.\n"
    assert not stand_in.left_over()
    assert stand_in.states[2:4] == ["done", "interrupted"]
    assert "stop -t 5 tritonserver_builder" in stand_in.calls

    code, output, errors = stand_in.run()

    assert code == 0, errors
    assert re.search(r"3/8 tritonserver_buildbase: done before, not repeated", output)


def test_stand_in_build_whose_server_knows_no_ensembles_gets_no_name(tmp_path: Path) -> None:
    stand_in = StandIn(tmp_path, "vllm-image")

    code, _output, errors = stand_in.run()

    assert code == 1
    assert "verdict:  does not know ensembles" in errors
    assert not (stand_in.state / "images" / TAG).exists()
    assert stand_in.states[-1] == "failed"


def test_stand_in_build_dry_run_writes_the_scripts_and_asks_docker_nothing(stand_in: StandIn) -> None:
    code, output, errors = stand_in.run("--dryrun")

    assert code == 0, errors
    assert stand_in.states == ["done", "done", *["waiting"] * 6]
    assert (stand_in.source / "build" / "docker_build").is_file()
    assert "TRITON_ENABLE_ENSEMBLE:BOOL=ON" in (stand_in.source / "build" / "cmake_build").read_text()
    assert not (stand_in.state / "calls.log").exists()
    assert "knows ensembles" not in output
