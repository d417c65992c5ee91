# SPDX-License-Identifier: Apache-2.0
"""The batch runner on small notebooks in real kernels: one reason each, the expected end in their names."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from ensemblekit.batch.notebooks import Notebook, Parameter, choose_notebooks, distribute
from ensemblekit.batch.report import write_report
from ensemblekit.batch.runner import LessonResult, Run, RunListener, run_lessons
from ensemblekit.errors import ParameterError
from ensemblekit.paths import RUN_DIR_VARIABLE, repo_root
from ensemblekit.records import read_records

NOTEBOOKS = repo_root() / "tests" / "data" / "notebooks"
STOP_TIMEOUT_S = 60
pytestmark = pytest.mark.notebook


def run_only(tmp_path: Path, *only: str, quick: bool = False, timeout_s: float | None = None, **given: str) -> Run:
    """Execute fixture notebooks into a run folder under `tmp_path`."""
    lessons = choose_notebooks(only, folder=NOTEBOOKS)
    parameters = distribute(lessons, given, quick=quick)
    return run_lessons(lessons, parameters, tmp_path / "run", quick=quick, cell_timeout_s=timeout_s)


def only_result(run: Run) -> LessonResult:
    """The result of a run of one lesson."""
    (result,) = run.results
    return result


def test_passing_notebook_leaves_notebook_records_and_summary(tmp_path: Path) -> None:
    run = run_only(tmp_path, "01", quick=True, COUNT="5", RELEASE="24.07")

    assert run.passed
    assert only_result(run).cells_run == only_result(run).cells == 4
    executed = json.loads((run.folder / "executed" / "01_passes.ipynb").read_text())
    assert "stand-in 5 24.07" in "".join(executed["cells"][3]["outputs"][0]["text"])
    assert (run.folder / "records" / "01_passes.json").is_file()
    assert json.loads((run.folder / "run.json").read_text())["passed"] is True


def test_lesson_in_two_languages_keeps_two_records_and_the_report_shows_each_its_own(tmp_path: Path) -> None:
    parts = {"01_same.ipynb": 1.25, "zh/01_same.ipynb": 2.5}
    for name, seconds in parts.items():
        lines = f"from ensemblekit import open_lesson\nopen_lesson('01_same').record(wasted_s={seconds})"
        page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(lines)])
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nbformat.write(page, tmp_path / name)

    run = run_lessons(choose_notebooks(["01", "zh/01"], folder=tmp_path), {}, tmp_path / "run")

    assert run.passed
    records = read_records(run.folder)
    assert {name: values["wasted_s"] for name, values in records.items()} == {"01_same": 1.25, "zh-01_same": 2.5}
    index = write_report(run).read_text()
    assert all(f"<dd>{seconds}</dd>" in index for seconds in parts.values())


def test_progress_inside_a_lesson_leaves_nothing_in_the_executed_page(tmp_path: Path) -> None:
    run = run_only(tmp_path, "07")

    executed = json.loads((run.folder / "executed" / "07_long-work-passes.ipynb").read_text())
    assert [output["output_type"] for output in executed["cells"][1]["outputs"]] == ["execute_result"]


def test_kernel_is_this_python_although_the_user_has_another_python3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / "home" / "kernels" / "python3" / "kernel.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")

    run = run_only(tmp_path, "01")

    assert run.passed
    assert json.loads((run.folder / "records" / "01_passes.json").read_text())["python"] == sys.executable


def test_run_leaves_the_environment_of_this_process_as_it_was(tmp_path: Path) -> None:
    before = dict(os.environ)

    run_only(tmp_path, "01")

    assert dict(os.environ) == before
    assert RUN_DIR_VARIABLE not in os.environ or os.environ[RUN_DIR_VARIABLE] == before[RUN_DIR_VARIABLE]


def test_quiet_exit_in_a_cell_is_incomplete(tmp_path: Path) -> None:
    result = only_result(run_only(tmp_path, "02"))

    assert result.outcome == "incomplete"
    assert "code cells did not run, although nothing failed" in result.message
    assert "Hint: a cell that calls exit()" in result.message


def test_failed_check_speaks_in_its_own_words_and_the_next_lesson_runs(tmp_path: Path) -> None:
    run = run_only(tmp_path, "03", "01")

    assert [result.outcome for result in run.results] == ["passed", "failed"]
    message = run.results[1].message
    assert "Lesson 03_check-fails failed in cell [2] (CheckFailed)" in message
    assert "Could not confirm that one is two." in message
    assert "Hint: " in message
    assert "Traceback" not in message
    assert not run.passed


def test_unforeseen_error_comes_with_the_end_of_its_traceback(tmp_path: Path) -> None:
    result = only_result(run_only(tmp_path, "04"))

    assert result.outcome == "failed"
    assert "ZeroDivisionError: division by zero" in result.message
    assert "1 / 0" in result.message
    assert "\x1b" not in result.message


def test_cell_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    result = only_result(run_only(tmp_path, "05", timeout_s=2))

    assert result.outcome == "failed"
    assert "a cell did not end within 2 s" in result.message
    assert "--timeout" in result.message


def test_kernel_that_dies_is_named(tmp_path: Path) -> None:
    result = only_result(run_only(tmp_path, "06"))

    assert result.outcome == "failed"
    assert "its Jupyter kernel died" in result.message


class PythonBreaksFor(RunListener):
    """Lets Python not start for one notebook."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.name, self.monkeypatch = name, monkeypatch

    def lesson_begins(self, lesson: Notebook, cells: int) -> None:
        if lesson.name == self.name:
            self.monkeypatch.setenv("PYTHONHOME", "/nowhere")

    def lesson_ends(self, result: LessonResult) -> None:
        self.monkeypatch.delenv("PYTHONHOME", raising=False)


def test_kernel_that_does_not_come_up_is_one_failed_lesson_and_the_next_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons = choose_notebooks(["01", "07"], folder=NOTEBOOKS)

    run = run_lessons(lessons, {}, tmp_path / "run", listener=PythonBreaksFor("01_passes", monkeypatch))

    assert [result.outcome for result in run.results] == ["failed", "passed"]
    assert "Could not run lesson 01_passes." in run.results[0].message
    assert "kernels.log" in run.results[0].message
    assert json.loads((run.folder / "run.json").read_text())["passed"] is False
    assert "Could not run lesson 01_passes." in write_report(run).read_text()


@pytest.mark.parametrize(
    ("number", "times", "settle_s"),
    [
        pytest.param(signal.SIGINT, 1, 0.0, id="ctrl-c-kernel-starts"),
        pytest.param(signal.SIGINT, 1, 0.5, id="ctrl-c-soon-after"),
        pytest.param(signal.SIGINT, 1, 2.0, id="ctrl-c-cell-runs"),
        pytest.param(signal.SIGINT, 5, 2.0, id="ctrl-c-five-times"),
        pytest.param(signal.SIGTERM, 1, 0.0, id="terminated-kernel-starts"),
        pytest.param(signal.SIGTERM, 1, 0.5, id="terminated-soon-after"),
        pytest.param(signal.SIGTERM, 1, 2.0, id="terminated-cell-runs"),
        pytest.param(signal.SIGHUP, 1, 2.0, id="hung-up"),
        pytest.param(signal.SIGKILL, 1, 2.0, id="killed"),
    ],
)
def test_interrupt_stops_the_kernel_and_keeps_a_partial_report(
    tmp_path: Path, number: signal.Signals, times: int, settle_s: float
) -> None:
    program = (
        # a shell's background job, such as a CI step, inherits that Ctrl-C is ignored; one below nohup, hanging up
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL);"
        "import sys; from pathlib import Path; from ensemblekit.cli import main as cli;"
        "import ensemblekit.cli.run_progress as c;"
        "choose = c.choose_notebooks;"
        f"c.choose_notebooks = lambda only: choose(only, folder=Path({str(NOTEBOOKS)!r})); cli.main()"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "run",
        "--only",
        "05",
        "--only",
        "06",
        "--runs-dir",
        str(tmp_path),
    ]
    runtime = tmp_path / "runtime-of-the-user"
    environment = os.environ | {"JUPYTER_RUNTIME_DIR": str(runtime)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    kernels = wait_for_kernels(process.pid, settle_s)

    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.1 if times > 1 else 0)  # what a hand on Ctrl-C does; signals at once would be one
    _, said = process.communicate(timeout=STOP_TIMEOUT_S)
    psutil.wait_procs(kernels, timeout=STOP_TIMEOUT_S if number == signal.SIGKILL else 0)

    assert not [kernel for kernel in kernels if kernel.is_running() and kernel.status() != psutil.STATUS_ZOMBIE]
    assert [*tmp_path.rglob("kernel-*.json"), *runtime.glob("*")] == []  # they hold a kernel's key
    if number == signal.SIGKILL:
        return
    assert process.returncode == 130
    assert "interrupted 05_sleeps" in said
    assert "Traceback" not in said
    (index,) = tmp_path.glob("*/report/index.html")
    assert "interrupted" in index.read_text()
    assert "not run" in index.read_text()


def wait_for_kernels(pid: int, settle_s: float) -> list[psutil.Process]:
    """The kernels of a run, some time after their start."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < deadline:
        children = psutil.Process(pid).children(recursive=True)
        kernels = [child for child in children if "ipykernel_launcher" in " ".join(child.cmdline())]
        if kernels:
            time.sleep(settle_s)
            return kernels
        time.sleep(0.1)
    raise TimeoutError("no kernel started")


@pytest.mark.parametrize(
    ("word", "first"),
    [
        ("exercises/01", "exercises-01_"),
        ("exercises/1", "exercises-01_"),
        ("notebooks/exercises/02", "exercises-02_"),
        ("exercises", "exercises-01_"),
        ("solutions/03", "solutions-03_"),
        ("zh/01", "zh-01_"),
        ("01", "01_reproduce"),
    ],
)
def test_exercises_and_solutions_are_found_by_their_folder(word: str, first: str) -> None:
    chosen = choose_notebooks([word])

    assert chosen[0].name.startswith(first)
    assert len(chosen) == 1 or word == "exercises"
    assert chosen[0].path.is_file()


def test_unknown_chinese_lesson_is_called_a_lesson() -> None:
    with pytest.raises(ParameterError, match=r"(?s)choose the lesson 'zh/07'.*the lessons are 00_preflight"):
        choose_notebooks(["zh/07"])


def test_unknown_exercise_lists_the_known_ones() -> None:
    with pytest.raises(ParameterError, match=r"(?s)choose the exercise 'exercises/77'.*01_.*--only exercises/01"):
        choose_notebooks(["exercises/77"])


def test_notebook_that_is_chosen_twice_runs_once_and_lessons_come_first() -> None:
    names = [one.name for one in choose_notebooks(["exercises/01", "02", "2", "01"])]

    assert [name[:5] for name in names] == ["01_re", names[1][:5], "exerc"]
    assert names[1].startswith("02_")


def test_unknown_lesson_lists_the_known_ones() -> None:
    with pytest.raises(ParameterError, match=r"(?s)Could not choose the lesson '77'.*01_passes.*Hint: .*--only 01"):
        choose_notebooks(["77"], folder=NOTEBOOKS)


@pytest.mark.parametrize("word", ["1", "01", "01_passes", "01_passes.ipynb", "notebooks/01_passes.ipynb"])
def test_lesson_is_found_by_number_and_by_name(word: str) -> None:
    assert [lesson.name for lesson in choose_notebooks([word], folder=NOTEBOOKS)] == ["01_passes"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"RELAESE": "24.08"}, "(?s)set the parameter RELAESE.*COUNT, ENGINE, RELEASE", id="unknown-name"),
        pytest.param({"COUNT": "three"}, "(?s)COUNT = 'three'.*type int.*its default is 3", id="wrong-type"),
        pytest.param({"RELEASE": "23.01"}, "(?s)release '23.01'.*24.07, 24.08, 24.09, 24.10", id="unknown-release"),
        pytest.param({"RELEASE": "24.10"}, "(?s)release 24.10.*none of them takes it", id="release-of-others"),
    ],
)
def test_wrong_parameter_is_refused_before_anything_starts(given: dict[str, str], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        distribute(choose_notebooks(["01"], folder=NOTEBOOKS), given, quick=False)


def test_quick_with_the_real_engine_is_refused() -> None:
    with pytest.raises(ParameterError, match="nothing of vLLM is installed"):
        distribute(choose_notebooks(["01"], folder=NOTEBOOKS), {"ENGINE": "vllm"}, quick=True)


def test_parameter_goes_only_to_lessons_that_have_it() -> None:
    lessons = choose_notebooks(["01", "05"], folder=NOTEBOOKS)

    given = distribute(lessons, {"SECONDS": "0.5", "RELEASE": "24.07"}, quick=True)

    assert given == {"01_passes": {"RELEASE": "24.07", "ENGINE": "stand-in"}, "05_sleeps": {"SECONDS": 0.5}}


def test_release_goes_only_to_lessons_whose_comment_names_it() -> None:
    lessons = choose_notebooks()

    given = distribute(lessons, {"RELEASE": "24.09"}, quick=True)

    assert given["01_reproduce_the_failure"]["RELEASE"] == "24.09"
    assert "RELEASE" not in given["05_upgrade_to_24_10"]


def test_parameters_cells_of_all_lessons_can_be_read() -> None:
    lessons = choose_notebooks()

    assert all(isinstance(p, Parameter) and p.comment for lesson in lessons for p in lesson.parameters.values())
    assert Notebook(lessons[1].path).parameters["RELEASE"].default == "24.08"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_truth_values_are_read_as_words(text: str, value: bool) -> None:
    assert Parameter("X", "bool", False, "").parse(text) is value


@pytest.mark.parametrize(
    ("given", "named"),
    [
        pytest.param({"PROVIDER": "dockr"}, "dockr", id="unknown-provider"),
        pytest.param({"FLAVOUR": "base"}, "base", id="unknown-flavour"),
        pytest.param({"PROVIDER": "attach"}, "URL", id="attach-without-url"),
    ],
)
def test_distribute_refuses_before_a_kernel_starts_what_the_lesson_would(given: dict[str, str], named: str) -> None:
    with pytest.raises(ParameterError, match=named):
        distribute(choose_notebooks(["06"]), given, quick=True)
