# SPDX-License-Identifier: Apache-2.0
"""Upstream's script cut into stages, the meter, and what a failed stage says. Nothing is built here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from ensemblekit.cli.main import app
from ensemblekit.errors import BuildError
from ensemblekit.workarounds.build_failures import stage_error
from ensemblekit.workarounds.build_meter import Meter, StageRecord, folder_bytes, read_meter
from ensemblekit.workarounds.build_plan import make_plan
from ensemblekit.workarounds.build_process import last_line
from ensemblekit.workarounds.build_progress import meter_table
from ensemblekit.workarounds.build_scripts import SCRIPT_STAGES, Stage, fingerprint, read_stages
from ensemblekit.workarounds.source_build import Build
from tests.conftest import DATA


@pytest.fixture
def stand_in_build(tmp_path: Path) -> Path:
    """The build folder that the stand-in build.py writes for 24.08."""
    shutil.copy(DATA / "stand_in_build" / "build.py", tmp_path)
    command = [sys.executable, *make_plan("24.08", "full").command(dryrun=True)[1:]]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "build"


def test_stand_in_build_script_is_cut_into_its_five_stages_with_nothing_lost(stand_in_build: Path) -> None:
    stages = read_stages(stand_in_build)

    assert tuple(stage.name for stage in stages) == SCRIPT_STAGES
    text = (stand_in_build / "docker_build").read_text().splitlines()
    commands = [line for line in text if line.startswith(("docker ", "if "))]
    assert [line for stage in stages for line in stage.lines if line.startswith(("docker ", "if "))] == commands
    assert all(stage.lines[:3] == ("set -e", "set -x", f"cd {stand_in_build.parent}") for stage in stages)


def test_stand_in_build_script_of_another_form_is_refused_and_the_way_without_stages_named(
    stand_in_build: Path,
) -> None:
    with (stand_in_build / "docker_build").open("a") as script:
        script.write("docker push tritonserver\n")

    with pytest.raises(BuildError, match=r"docker push tritonserver\nHint: .*`bash .*docker_build`"):
        read_stages(stand_in_build)


def test_script_that_is_not_there_names_the_dry_run(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="--dryrun"):
        read_stages(tmp_path)


def test_stand_in_build_fingerprint_changes_with_command_and_scripts(stand_in_build: Path) -> None:
    first = fingerprint(stand_in_build, ["build.py"])

    assert fingerprint(stand_in_build, ["build.py"]) == first
    assert fingerprint(stand_in_build, ["build.py", "-j2"]) != first
    (stand_in_build / "Dockerfile").write_text("FROM another\n")
    assert fingerprint(stand_in_build, ["build.py"]) != first


def a_meter() -> Meter:
    """A meter on which nothing has run."""
    return Meter.fresh("24.08", "full", ["python3", "build.py"], "/source")


def test_meter_written_and_read_again_is_the_same(tmp_path: Path) -> None:
    meter = a_meter()
    meter.stages["clone"] = StageRecord(state="done", attempts=2, seconds=90.0, build_folder_gb=0.5)
    meter.write(tmp_path / "deeper" / "meter.json")

    assert read_meter(tmp_path / "deeper" / "meter.json") == meter
    assert meter.done == ("clone",)
    assert meter.seconds == 60 * meter.stages["clone"].minutes == 90.0


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"], ids=["absent", "empty", "object", "list"])
def test_meter_that_cannot_be_read_is_none(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "meter.json"
    if content is not None:
        file.write_text(content)

    assert read_meter(file) is None


def test_meter_forgets_a_stage_and_all_after_it() -> None:
    meter = a_meter()
    for record in meter.stages.values():
        record.state = "done"

    meter.forget("artifacts")

    assert meter.done == ("clone", "dryrun", "tritonserver_buildbase", "cmake_build")


def test_other_command_line_begins_on_a_fresh_meter(tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text("")
    plans = [make_plan("24.08", "full", source=tmp_path, jobs=jobs) for jobs in (None, 2)]
    first = Build(plans[0], tmp_path / "work", Silent())
    first.meter.stages["clone"].state = "done"
    first.meter.write(first.meter_path)

    assert Build(plans[0], tmp_path / "work", Silent()).meter.done == ("clone",)
    assert Build(plans[1], tmp_path / "work", Silent()).meter.done == ()


def test_build_that_has_begun_asks_no_longer_for_the_whole_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build.py").write_text("")
    monkeypatch.setattr("ensemblekit.workarounds.prerequisites.COMPILER_GB", 10**9)
    command = ["build-plan", "run", "--source", str(tmp_path), "--work", str(tmp_path / "work")]
    monkeypatch.setenv("PATH", str(tmp_path))  # no docker either, so that nothing is built here

    first = CliRunner().invoke(app, command)
    build = Build(make_plan("24.08", "minimal", source=tmp_path), tmp_path / "work", Silent())
    build.meter.stages["tritonserver_buildbase"].attempts = 1
    build.meter.write(build.meter_path)
    later = CliRunner().invoke(app, command)

    assert "free disk: " in str(first.exception)
    assert "free disk: " not in str(later.exception)
    assert "docker: " in str(later.exception)


class Silent:
    """A watcher that shows nothing."""

    def skipped(self, stage: Stage, record: StageRecord) -> None: ...
    def begun(self, stage: Stage, record: StageRecord) -> None: ...
    def polled(self, stage: Stage, record: StageRecord, line: str) -> None: ...
    def ended(self, stage: Stage, record: StageRecord) -> None: ...


def test_folder_bytes_count_what_is_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"x" * 100_000)

    assert 100_000 <= folder_bytes(tmp_path) < 120_000
    assert folder_bytes(tmp_path / "absent") == 0


def test_table_shows_how_far_the_compiler_says_it_is() -> None:
    console = Console(width=150, record=True)
    records: dict[Stage, StageRecord] = {"cmake_build": StageRecord(state="running", attempts=1, seconds=300.0)}

    console.print(meter_table(records, line="[ 42%] Building CXX object src/main.cc.o"))

    line = next(row for row in console.export_text().splitlines() if "cmake_build" in row)
    assert "42 %" in line
    assert "5.0" in line


@pytest.mark.parametrize(
    ("stage", "line", "hint"),
    [
        ("tritonserver", "write /x: no space left on device", "docker system prune"),
        ("cmake_build", "c++: fatal error: Killed signal terminated program cc1plus", "fewer --jobs"),
        ("tritonserver_buildbase", "dial tcp: lookup nvcr.io: no such host", "could not be reached"),
        ("tritonserver_buildbase", "unauthorized: authentication required", "docker login nvcr.io"),
        ("clone", "fatal: Remote branch r24.08 not found", "--source"),
        ("cmake_build", "error: something else", "goes on compiling where it stopped"),
        ("tritonserver", "E: Unable to fetch", "goes on with this stage"),
    ],
)
def test_failed_stage_has_the_log_and_one_hint_that_fits(tmp_path: Path, stage: Stage, line: str, hint: str) -> None:
    (tmp_path / "build.log").write_text(f"before\n{line}\n")

    text = str(stage_error(stage, 2, StageRecord(attempts=1), tmp_path / "build.log"))

    assert f"{line}\n```\nLog: {tmp_path / 'build.log'}\nHint: " in text
    assert hint in text.splitlines()[-1]


def test_last_line_is_the_last_that_says_something(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a\n" * 5000 + "b\n\n  \n")

    assert last_line(tmp_path / "log") == "b"
    assert last_line(tmp_path / "absent") == ""
