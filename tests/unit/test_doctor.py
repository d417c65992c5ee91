# SPDX-License-Identifier: Apache-2.0
"""The parts of the doctor that need no server: the request it builds, what it would ask, what it says and records."""

import threading
import time
from pathlib import Path

import pytest

from ensemblekit.batch.report import write_doctor_page
from ensemblekit.diagnose.doctor.report import Check, DoctorReport, Plan
from ensemblekit.diagnose.doctor.request import build_request, entry_model, tensor_of
from ensemblekit.diagnose.doctor.server import ServerSource, start_cost
from ensemblekit.diagnose.doctor.watchdog import ModelProcess, RequestHangs, watched
from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.diagnose.probe.running import ModelConfig, Tensor
from ensemblekit.errors import ParameterError
from tests.conftest import DATA

CONFIG = ModelConfig.model_validate(
    {
        "name": "all",
        "input": [
            {"name": "TEXT", "data_type": "TYPE_STRING", "dims": ["1"]},
            {"name": "FLAG", "data_type": "TYPE_BOOL", "dims": [1]},
            {"name": "COUNT", "data_type": "TYPE_INT32", "dims": [-1]},
            {"name": "MATRIX", "data_type": "TYPE_FP32", "dims": [2, 2]},
            {"name": "MORE", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
        ],
    }
)


def test_build_request_gives_each_required_input_a_plain_value() -> None:
    values = build_request(CONFIG)

    assert values == {
        "TEXT": ["What is the capital of France?"],
        "FLAG": [False],
        "COUNT": [1],
        "MATRIX": [0.5, 0.5, 0.5, 0.5],
    }


def test_build_request_what_is_given_wins() -> None:
    values = build_request(CONFIG, {"TEXT": "Hi", "MATRIX": [1, 2, 3, 4], "MORE": "yes"})

    assert (values["TEXT"], values["MATRIX"], values["MORE"]) == (["Hi"], [1, 2, 3, 4], ["yes"])


def test_build_request_unknown_input_lists_the_known() -> None:
    with pytest.raises(ParameterError, match="TEXT, FLAG, COUNT"):
        build_request(CONFIG, {"PROMPT": "Hi"})


def test_entry_model_is_the_ensemble_that_is_no_step(tmp_path: Path) -> None:
    for name, step in {"a": "b", "b": "c"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(
            f'platform: "ensemble" ensemble_scheduling {{ step [ {{ model_name: "{step}" }} ] }}'
        )
    (tmp_path / "c").mkdir()

    assert entry_model(tmp_path) == "a"
    assert entry_model(DATA / "report_repository") == "ensemble"


def test_entry_model_of_an_empty_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no model folder"):
        entry_model(tmp_path)


def test_start_cost_names_the_models_that_would_be_loaded_first() -> None:
    repository = DATA / "report_repository"
    report = lint_repository(repository, flavour="vllm-image")

    assert start_cost(repository, report).startswith("loaded main_app, pre first and then exited with code 1")


def test_watched_passes_answer_and_error_on() -> None:
    def fail() -> str:
        raise ParameterError("ask", found="nothing", hint="none")

    assert watched(lambda: "answer", ()) == "answer"
    with pytest.raises(ParameterError):
        watched(fail, ())


def test_watched_stand_in_process_that_is_gone_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemblekit.diagnose.doctor.watchdog.GRACE_S", 0.3)
    over = threading.Event()
    gone = ModelProcess(2**22 + 1, "pre", "2.2.6")  # above the largest process id of Linux
    begin = time.monotonic()
    with pytest.raises(RequestHangs, match="the process of pre ended") as caught:
        watched(lambda: str(over.wait(600)), (gone,))
    over.set()

    assert caught.value.dead == (gone,)
    assert time.monotonic() - begin < 300


def test_page_escapes_what_a_server_says(tmp_path: Path) -> None:
    checks = (Check("lint", "error", "a <b>bad</b> model", ("<script>",)), Check("start", "skipped", "not tried"))
    found = DoctorReport(Path("models"), "24.08", "", checks, "loaded x first", 1.0, tmp_path)
    page = write_doctor_page(found).read_text()

    assert "a &lt;b&gt;bad&lt;/b&gt; model" in page
    assert "<script>" not in page
    assert "A start would have loaded x first." in page


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("TYPE_INT32", ["x"]),
        ("TYPE_INT32", [[1], [2, 3]]),
        ("TYPE_INT32", [2**80]),
        ("TYPE_FP32", [{"a": 1}]),
        ("TYPE_NONE", [1]),
        ("TYPE_INT32", [["x"] * 10**5]),
    ],
    ids=["word", "ragged", "too-large", "object", "unknown-type", "many"],
)
def test_value_that_is_no_tensor_is_one_short_error(kind: str, values: list[object]) -> None:
    with pytest.raises(ParameterError, match="--request") as caught:
        tensor_of(Tensor(name="A", data_type=kind, dims=[1]), values, batched=False)

    assert len(str(caught.value)) < 3000


@pytest.mark.parametrize("batched", [False, True])
def test_nested_value_gets_the_shape_of_its_input(batched: bool) -> None:
    made = tensor_of(Tensor(name="A", data_type="TYPE_FP32", dims=[2, 2]), [[1, 2], [3, 4]], batched=batched)

    assert made.shape() == ([1, 2, 2] if batched else [2, 2])


@pytest.mark.parametrize("name", ["", "absent", "file"], ids=["folder-without-bin", "absent", "no-program"])
def test_python_that_is_none_is_one_error_before_anything_is_staged(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ParameterError, match=r"run the Python models with .*[\s\S]*--python"):
        ServerSource.of("24.08").server(Plan(tmp_path, python=tmp_path / name), tmp_path)
