# SPDX-License-Identifier: Apache-2.0
"""Upstream's script cut into lines, what is remembered of them, and what a failed line says. Nothing is built here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from ensemblekit.cli.main import app
from ensemblekit.errors import BuildError
from ensemblekit.faults.catalogue import recognise
from ensemblekit.faults.container import BUILD_FAULTS
from ensemblekit.workarounds.build_plan import make_plan
from ensemblekit.workarounds.source_build import Build, BuildLine, BuildRecord, read_lines, read_record
from tests.conftest import DATA


@pytest.fixture
def stand_in_build(tmp_path: Path) -> Path:
    """The build folder that the stand-in build.py writes for 24.08."""
    shutil.copy(DATA / "stand_in_build" / "build.py", tmp_path)
    command = [sys.executable, *make_plan("24.08", "full").command(dryrun=True)[1:]]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "build"


TITLES = [
    "docker build tritonserver_buildbase",
    "docker run tritonserver_builder",
    "docker cp tritonserver_builder:/tmp/tritonbuild/install",
    "docker cp tritonserver_builder:/tmp/tritonbuild/ci",
    "docker build tritonserver",
    "docker build tritonserver_cibase",
]


def test_stand_in_build_script_is_cut_into_its_six_lines_with_nothing_lost(stand_in_build: Path) -> None:
    lines = read_lines(stand_in_build)

    assert [line.title for line in lines] == TITLES
    text = (stand_in_build / "docker_build").read_text().splitlines()
    commands = [line for line in text if line.startswith(("docker ", "if "))]
    folders = [line.text.splitlines()[0] for line in lines]
    assert [part for line in lines for part in line.text.splitlines()[1:]] == commands
    assert folders == [f"cd {stand_in_build.parent}"] * 6
    assert [line.made("run") for line in lines] == ["", "tritonserver_builder", "", "", "", ""]
    assert [line.made("build") for line in lines][4:] == ["tritonserver", "tritonserver_cibase"]


@pytest.mark.parametrize("odd", ["for name in a b; do", "docker push \\", "if true; then", "if true; then echo; fi"])
def test_stand_in_build_script_of_another_form_is_refused_and_the_way_without_lines_named(
    stand_in_build: Path, odd: str
) -> None:
    with (stand_in_build / "docker_build").open("a") as script:
        script.write(f"{odd}\n")

    with pytest.raises(BuildError, match=r"Hint: .*`bash .*docker_build`") as caught:
        read_lines(stand_in_build)

    assert odd in str(caught.value)


def test_script_that_is_not_there_names_the_dry_run(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="--dryrun"):
        read_lines(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"], ids=["absent", "empty", "object", "list"])
def test_record_that_cannot_be_read_is_empty(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "build.json"
    if content is not None:
        file.write_text(content)

    assert read_record(file) == BuildRecord()


def dry_run(folder: Path, jobs: int | None = None) -> list[bool]:
    """Let the stand-in write its scripts and return which lines count as finished."""
    build = Build(make_plan("24.08", "full", source=folder, jobs=jobs), Console(), folder / "work")
    build.run(dryrun=True)
    return [line.finished for line in build.record.lines]


@pytest.mark.parametrize("change", ["nothing", "command", "scripts"])
def test_stand_in_build_finished_lines_are_kept_for_the_same_command_and_scripts_alone(
    stand_in_build: Path, change: str
) -> None:
    source = stand_in_build.parent
    assert dry_run(source) == [False] * 6
    record = read_record(source / "work" / "build.json")
    record.lines[0].finished = True
    (source / "work" / "build.json").write_text(record.model_dump_json())
    if change == "scripts":
        program = source / "build.py"
        program.write_text(program.read_text().replace("COPY . /workspace", "COPY . /elsewhere"))

    again = dry_run(source, jobs=2 if change == "command" else None)

    assert again == [change == "nothing", *[False] * 5]


def test_build_that_has_begun_asks_no_longer_for_the_whole_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "build.py").write_text("")
    monkeypatch.setattr("ensemblekit.workarounds.build_plan.COMPILER_GB", 10**9)
    command = ["build-plan", "run", "--source", str(tmp_path), "--work", str(tmp_path / "work")]
    monkeypatch.setenv("PATH", str(tmp_path))  # no docker either, so that nothing is built here

    first = CliRunner().invoke(app, command)
    record = BuildRecord(fingerprint="24.08-minimal-", lines=[BuildLine(text="docker build -t x .", attempts=1)])
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "build.json").write_text(record.model_dump_json())
    later = CliRunner().invoke(app, command)

    assert "free disk: " in str(first.exception)
    assert "free disk: " not in str(later.exception)
    assert "build" in str(later.exception)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("write /x: no space left on device", "docker system prune"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "fewer --jobs"),
        ("dial tcp: lookup nvcr.io: no such host", "could not be reached"),
        ("unauthorized: authentication required", "docker login nvcr.io"),
        ("fatal: Remote branch r24.08 not found in upstream origin", "--source"),
        ("Error response from daemon: No such container: tritonserver_builder", "--fresh"),
    ],
)
def test_failed_line_has_one_hint_that_fits(line: str, hint: str) -> None:
    found = recognise(f"before\n{line}\n", among=BUILD_FAULTS)

    assert found
    assert hint in found.hint.format(engine="docker", registry="nvcr.io")
