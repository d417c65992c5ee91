# SPDX-License-Identifier: Apache-2.0
"""A sweep of parameter sets, killed in its middle and resumed: nothing runs twice, nothing is lost."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from ensemblekit.batch.notebooks import RunPlan, read_sets
from ensemblekit.cli.main import app
from ensemblekit.errors import ParameterError
from ensemblekit.paths import repo_root

NOTEBOOKS = repo_root() / "tests" / "data" / "notebooks"
STOP_TIMEOUT_S = 120
SETS = 4
PROGRAM = (
    "from pathlib import Path; from ensemblekit.cli import main as cli;"
    "import ensemblekit.cli.run_progress as c;"
    "choose = c.choose_notebooks;"
    f"c.choose_notebooks = lambda only: choose(only, folder=Path({str(NOTEBOOKS)!r})); cli.main()"
)


def started(runs: Path, *words: str) -> "subprocess.Popen[str]":
    """A run of the fixture notebooks in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, "run", "--runs-dir", str(runs), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def passed(runs: Path) -> dict[str, str]:
    """Of each set that passed: the parameter that it ran with."""
    files = sorted(runs.glob("*-sweep-*/*/run.json"))
    found = {file.parent.name: json.loads(file.read_text())["results"][0] for file in files}
    return {name: one["parameters"]["COUNT"] for name, one in found.items() if one["outcome"] == "passed"}


@pytest.mark.notebook
def test_sweep_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("".join(f"- {{COUNT: {count}}}\n" for count in range(1, SETS + 1)))
    process = started(tmp_path, "--only", "01", "--sweep", str(sweep))
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while len(passed(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=STOP_TIMEOUT_S)
    for kernel in kernels:
        if kernel.is_running():
            kernel.kill()
    done = passed(tmp_path)
    (folder,) = tmp_path.glob("*-sweep-*")
    times = {name: (folder / name / "executed" / "01_passes.ipynb").stat().st_mtime_ns for name in done}

    resumed = started(tmp_path, "--resume", folder.name)
    _, said = resumed.communicate(timeout=STOP_TIMEOUT_S)

    assert resumed.returncode == 0, said
    assert 2 <= len(done) < SETS
    assert passed(tmp_path) == {f"{count:02d}": count for count in range(1, SETS + 1)}
    assert {name: (folder / name / "executed" / "01_passes.ipynb").stat().st_mtime_ns for name in done} == times
    assert len(list(tmp_path.glob("*-sweep-*"))) == 1
    assert f"{SETS} of {SETS} sets passed" in said


@pytest.mark.parametrize("text", ["", "RELEASE: 24.08", "- 1", "- {A: [1]}", "- {}", "[[[", "- {A: 1", "a: !!x b"])
def test_sweep_that_is_no_list_of_sets_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)

    with pytest.raises(ParameterError, match=r"(?s)Could not read the sweep .*Hint: a list of parameter sets"):
        read_sets(file)


def test_value_of_a_set_is_the_text_that_stands_there(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("- {RELEASE: 24.10, FLAG: true}\n- RELEASE: '24.08'\n")

    assert read_sets(file) == [{"RELEASE": "24.10", "FLAG": "true"}, {"RELEASE": "24.08"}]


def test_folder_without_a_plan_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no plan of a run"):
        RunPlan.load(tmp_path)


def test_runs_are_listed_and_only_the_newest_kept(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        folder = tmp_path / f"2026010{day}-120000-quick-3f9a"
        folder.mkdir()
        (folder / "run.json").write_text('{"results": [{"outcome": "passed"}, {"outcome": "failed"}]}')
    (tmp_path / "notes").mkdir()

    listed = CliRunner().invoke(app, ["runs", "--runs-dir", str(tmp_path)])
    kept = CliRunner().invoke(app, ["runs", "--keep", "1", "--runs-dir", str(tmp_path)])

    assert listed.output.count("1 of 2 passed") == 3
    assert kept.output.count("removed") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20260103-120000-quick-3f9a", "notes"]
