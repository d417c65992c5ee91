# SPDX-License-Identifier: Apache-2.0
"""The doctor with real servers: good and bad repositories, the stop before a start, and a request that would hang."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemblekit.diagnose.doctor.report import DoctorReport, Plan
from ensemblekit.diagnose.doctor.run import examine
from ensemblekit.paths import RUN_DIR_VARIABLE
from tests.atlas.measure import numpy_2_environment
from tests.conftest import DATA, START_TIMEOUT_S, ServerMaker

pytestmark = [pytest.mark.server]
PROGRAM = Path(sys.executable).with_name("ensemblekit")
REPORT = DATA / "report_repository"
NAMED_S = 15.0  # the goal: how soon a hang is named, of which the request is a part


@pytest.fixture(autouse=True)
def a_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for records and logs that is the test's own."""
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path / "run"))
    return tmp_path / "run"


def _states(found: DoctorReport) -> dict[str, str]:
    return {check.name: check.state for check in found.checks if check.name != "preflight"}


def test_doctor_good_repository_is_started_asked_and_recorded(a_run_folder: Path) -> None:
    found = examine(Plan(REPORT, ready_timeout_s=START_TIMEOUT_S))

    assert _states(found) == {"probe": "ok", "lint": "ok", "start": "ok", "request": "ok"}
    assert found.exit_code == 0
    assert "What is the capital of France?" in found.checks[-1].facts["answer"]
    record = json.loads((a_run_folder / "records" / "doctor.json").read_text())
    assert record["ready_s"] > 0
    assert record["answer_s"] > 0


def test_doctor_server_without_ensembles_stops_before_the_start(a_run_folder: Path) -> None:
    found = examine(Plan(REPORT, server="24.08/vllm-image"))

    assert _states(found) == {"probe": "error", "lint": "error", "start": "skipped", "request": "skipped"}
    assert "main_app, pre" in found.start_cost
    assert not (a_run_folder / "doctor" / "server").exists()


def test_doctor_forced_start_ends_in_the_root_cause() -> None:
    found = examine(Plan(REPORT, server="24.08/vllm-image", force=True, ready_timeout_s=START_TIMEOUT_S))

    (start,) = (check for check in found.checks if check.name == "start")
    assert (start.state, found.start_cost) == ("error", "")
    assert "ensemble: this server was built without ensembles" in start.headline
    assert "CAUSE E101" in start.details[0]


def test_doctor_stops_at_lints_error(tmp_path: Path) -> None:
    shutil.copytree(REPORT, tmp_path / "models")
    (tmp_path / "models" / "pre" / "config.pbtxt").write_text('backend: "python\n')
    found = examine(Plan(tmp_path / "models"))

    assert _states(found) == {"probe": "ok", "lint": "error", "start": "skipped", "request": "skipped"}
    assert "pre" in found.headline


def test_doctor_model_that_waits_for_ever_is_not_waited_for(tmp_path: Path) -> None:
    shutil.copytree(REPORT, tmp_path / "models")
    (tmp_path / "models" / "pre" / "0" / "model.py").unlink()
    found = examine(Plan(tmp_path / "models", force=True, ready_timeout_s=600))

    (start,) = (check for check in found.checks if check.name == "start")
    assert "pre: a Python model without its model.py (stuck after" in start.headline


def test_doctor_decoupled_ensemble_is_asked_over_generate() -> None:
    found = examine(Plan(DATA / "decoupled_repository", ready_timeout_s=START_TIMEOUT_S, request={"chat_input": "one"}))

    assert found.checks[-1].state == "ok", found
    assert "HTTP generate" in found.checks[-1].headline


def test_doctor_request_for_an_unknown_input_is_an_error_that_lists_the_known() -> None:
    found = examine(Plan(REPORT, ready_timeout_s=START_TIMEOUT_S, request={"PROMPT": "Hi"}))

    assert found.checks[-1].state == "error"
    assert "chat_input" in str(found)


def test_doctor_running_server_is_examined_as_it_is(make_server: ServerMaker) -> None:
    server = make_server(REPORT).start(START_TIMEOUT_S)
    found = examine(Plan(None, server=server.http_url))

    assert _states(found) == {"probe": "ok", "request": "ok"}
    assert server.running


@pytest.mark.slow
def test_doctor_names_the_numpy_2_hang_instead_of_waiting(tmp_path: Path) -> None:
    python = numpy_2_environment(tmp_path / "environment") / "bin" / "python3"
    found = examine(Plan(REPORT, python=python, ready_timeout_s=START_TIMEOUT_S, request_timeout_s=600))

    (request,) = (check for check in found.checks if check.name == "request")
    assert _states(found) == {"probe": "ok", "lint": "warning", "start": "ok", "request": "error"}
    assert request.facts == {"code": "T304", "hangs": True}
    assert "is loaded in the process of pre" in request.headline
    assert "Triton by itself waits for ever" in str(found)
    print(f"named after {found.seconds:.1f} s, the request alone {request.seconds:.1f} s; the goal is {NAMED_S:g} s")


def test_doctor_command_json_and_page(tmp_path: Path) -> None:
    command = [PROGRAM, "doctor", REPORT, "--server", "24.08/vllm-image", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)

    content = json.loads(done.stdout)
    assert done.returncode == content["exit_code"] == 1
    assert "does not know ensembles" in Path(content["report"]).read_text()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "an empty folder"),
        (lambda path: path.write_bytes(bytes(range(256))), "not a folder"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: None, "no such folder"),
    ],
    ids=["empty-folder", "binary-file", "symlink-loop", "absent"],
)
def test_doctor_odd_repository_is_one_clear_answer(tmp_path: Path, make: object, words: str) -> None:
    make(tmp_path / "models")  # type: ignore[operator]
    done = subprocess.run([PROGRAM, "doctor", tmp_path / "models"], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert words in done.stdout
    assert "Traceback" not in done.stderr
    assert "start" not in [line.split()[1] for line in done.stdout.splitlines() if line.startswith("ok")]


UNREADABLE = """
import os, sys; os.umask(0)
from pathlib import Path
from ensemblekit.diagnose.doctor.run import Plan, examine
url, good, bad = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
examine(Plan(good, server=url))  # imports what it needs while this process may still read Python's own files
os.setegid(65534)
os.seteuid(65534)
print(examine(Plan(bad, server=url)))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to become another user")
def test_doctor_repository_without_read_permission_says_so(make_server: ServerMaker) -> None:
    server = make_server(REPORT).start(START_TIMEOUT_S)
    with tempfile.TemporaryDirectory() as folder:
        bad, run = Path(folder) / "models", Path(folder) / "run"
        for path in (run / "doctor", run / "records"):
            path.mkdir(parents=True)
            path.chmod(0o777)
        bad.mkdir(mode=0o700)
        Path(folder).chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", UNREADABLE, server.http_url, REPORT, bad],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {RUN_DIR_VARIABLE: str(run)},
        )

    print(done.stdout)
    assert "lint" in done.stdout
    assert "ermission" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
