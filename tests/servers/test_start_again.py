# SPDX-License-Identifier: Apache-2.0
"""Starts that end by a fault of Triton's own are made again: its races made to come, and stand-ins that crash."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ensemblekit.diagnose.explain.explainer import explain_log
from ensemblekit.lesson.lesson import open_lesson
from ensemblekit.paths import RUN_DIR_VARIABLE
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.outcome import StartOutcome
from ensemblekit.servers.process import CRASH_RETRIES, TritonServer
from tests.conftest import DATA, START_TIMEOUT_S, ServerMaker

STAND_IN = """#!/bin/sh
cat << END
I1125 04:11:40.122473 21203 server.cc:336] "{words}"
END
if [ -e {folder}/again ]; then exit 1; fi
touch {folder}/again
kill -SEGV $$
"""

LOST_LOCK = "terminate called after throwing an instance of 'boost::interprocess::lock_exception'"

pytestmark = pytest.mark.server


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("All models are stopped, unloading models", 1),
        ("Waiting for in-flight requests to complete.", 1),
        (LOST_LOCK, 1),
        ("loading: pre:0", 139),
    ],
    ids=["while-unloading-once-more", "beginning-to-end-once-more", "by-a-lost-lock-once-more", "elsewhere-as-it-is"],
)
def test_stand_in_that_crashes(tmp_path: Path, words: str, code: int) -> None:
    program = tmp_path / "tritonserver"
    program.write_text(STAND_IN.format(folder=tmp_path, words=words))
    program.chmod(0o755)
    installation = replace(install_embedded(get_release("24.08"), "vllm-image", tmp_path / "real"), binary=program)

    outcome = TritonServer(installation, DATA / "report_repository", tmp_path / "run").attempt_start(20)

    assert (outcome.kind, outcome.exit_code) == ("exited", code)
    assert (tmp_path / "run" / "server.crashed.log").exists() is (code == 1)


def test_stand_in_that_crashes_every_time_is_given_up_after_three_more_starts(tmp_path: Path) -> None:
    program = tmp_path / "tritonserver"
    program.write_text(STAND_IN.format(folder="/nonexistent", words="All models are stopped, unloading models"))
    program.chmod(0o755)
    installation = replace(install_embedded(get_release("24.08"), "vllm-image", tmp_path / "real"), binary=program)

    outcome = TritonServer(installation, DATA / "report_repository", tmp_path / "run").attempt_start(20)

    assert (outcome.exit_code, outcome.crashes) == (139, CRASH_RETRIES)


@pytest.fixture
def kit_repository(tmp_path: Path) -> Path:
    """The kit's own repository with the stand-in: three models to unload."""
    return stage_repository(tmp_path / "models", source=None, device="cpu").path


def _library(folder: Path, name: str) -> str:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here, to make the library that lets Triton lose its race")
    source, library = Path(__file__).with_name(f"{name}.c"), folder / f"{name}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return str(library)


def test_triton_that_loses_its_race_is_started_again_and_the_note_says_so(
    make_server: ServerMaker, kit_repository: Path, tmp_path: Path
) -> None:
    server = make_server(kit_repository, flavour="vllm-image")
    server.environment = {"LD_PRELOAD": _library(tmp_path, "slow_wake"), "SLOW_WAKE_ONCE": str(tmp_path / "once")}

    outcome = server.attempt_start(START_TIMEOUT_S)

    assert (outcome.kind, outcome.exit_code) == ("exited", 1)
    assert outcome.crashes >= 1  # the next start may crash by itself
    assert outcome.note.startswith("Triton crashed ")
    assert "signal" not in str(outcome)
    assert server.log_path.with_name("server.crashed.log").exists()


@pytest.mark.parametrize("release", ["24.08", "24.10"])
def test_triton_that_gave_up_a_process_and_lost_its_lock_is_started_again(
    make_server: ServerMaker, kit_repository: Path, tmp_path: Path, release: str
) -> None:
    once = tmp_path / "once"
    server = make_server(kit_repository, release=release)
    server.environment = {"LD_PRELOAD": _library(tmp_path, "stopped_stub"), "STOPPED_STUB": "preprocess_0_0"}
    server.environment["STOPPED_ONCE"] = str(once)

    outcome = server.attempt_start(START_TIMEOUT_S)

    assert once.exists()
    assert (outcome.kind, outcome.gave_up) == ("ready", True)
    assert outcome.note.startswith("Triton gave up the process of a model ")
    crashed = server.log_path.with_name("server.crashed.log")
    assert "boost::interprocess::lock_exception" in crashed.read_text()
    assert [cause.code for cause in explain_log(crashed).causes] == ["S466"]


def test_lesson_says_on_its_page_that_triton_crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
    shown = list[str]()
    monkeypatch.setattr("ensemblekit.lesson.lesson.display", lambda text: shown.append(text.data))
    lesson = open_lesson("lesson_test", ENGINE="stand-in")
    server = lesson.server(DATA / "report_repository")
    shown.clear()

    def crashed(self: TritonServer, *_args: object) -> StartOutcome:
        return StartOutcome("exited", 1, 1.0, (), (), "", self.log_path, crashes=2)

    monkeypatch.setattr(TritonServer, "attempt_start", crashed)
    lesson.attempt_start(server)

    assert len(shown) == 1
    assert shown[0].startswith("Triton crashed 2 times")
