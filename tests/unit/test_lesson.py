# SPDX-License-Identifier: Apache-2.0
"""How a lesson opens: the parameters it finds in its notebook, and what its page says about the engine."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from ensemblekit.errors import ParameterError
from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from ensemblekit.lesson import lesson as lesson_module
from ensemblekit.lesson.lesson import GENUINE_LOG, Lesson, log_lines, open_lesson, parameters
from ensemblekit.paths import RUN_DIR_VARIABLE
from ensemblekit.settings import check_settings


@pytest.fixture
def a_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    """An IPython shell as a kernel has one."""
    shell = InteractiveShell()
    monkeypatch.setattr(lesson_module, "get_ipython", lambda: shell)
    yield shell
    shell.history_manager.end_session()


def test_parameters_are_the_annotated_names_with_the_values_of_now(a_kernel: InteractiveShell) -> None:
    a_kernel.run_cell('RELEASE: str = "24.08"  # a release\nCLIENTS: int = 8  # of the page itself\nGREEDY = {}')
    a_kernel.run_cell('RELEASE = "24.09"')  # as papermill sets it

    assert parameters() == {"RELEASE": "24.09"}


def test_parameter_that_is_misspelt_is_refused_with_the_right_name(a_kernel: InteractiveShell) -> None:
    a_kernel.run_cell('RELAESE: str = "24.08"')

    with pytest.raises(ParameterError, match=r"(?s)RELAESE.*no such parameter.*did you mean RELEASE\?"):
        parameters()


def test_parameters_outside_a_notebook_are_none() -> None:
    assert parameters() == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ENGINE": "auto"}, "vLLM is not installed"),
        ({"ENGINE": "stand-in"}, "Quick mode"),
        ({"ENGINE": "stand-in", "made_for": "stand-in"}, ""),
        ({}, ""),
    ],
    ids=["auto", "quick", "written-for-it", "no-engine"],
)
def test_lesson_without_vllm_says_so_where_that_is_news(
    given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown = list[str]()
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr("ensemblekit.settings.find_spec", lambda _name: None)
    monkeypatch.setattr(lesson_module, "display", lambda text: shown.append(text.data))

    lesson = open_lesson("engine_test", **given)

    assert lesson.settings.engine == "stand-in"
    assert len(shown) == bool(said)
    assert said in "".join(shown)


def test_page_that_asks_a_shared_server_says_which_and_keeps_the_key_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = list[Any]()
    monkeypatch.setattr(lesson_module, "display", shown.append)

    open_lesson("04_stream_and_steer", made_for="stand-in", PROVIDER="attach", URL="SECRET@10.0.0.7:8000")

    assert [one.data for one in shown] == ["> This page starts no server. It asks the one at `10.0.0.7:8000`."]


@pytest.mark.parametrize(
    ("engine", "model", "text", "known"),
    [
        ("vllm", "smollm2-135m-instruct", "The capital of France is Paris.", True),
        ("vllm", "smollm2-135m-instruct", "Lyon.", False),
        ("stand-in", "smollm2-135m-instruct", "(stand-in) You asked: What is the capital of France?", True),
        ("stand-in", "smollm2-135m-instruct", "The capital of France is Paris.", False),
        ("vllm", "another/model", "It is Paris.", True),
        ("vllm", "another/model", "", False),
    ],
)
def test_lesson_knows_the_greedy_answer_of_the_pinned_model_and_of_the_stand_in(
    engine: str, model: str, text: str, known: bool
) -> None:
    assert Lesson("x", check_settings(ENGINE=engine, MODEL=model)).knows(text) is known


def test_last_refusal_is_the_last_poll_error_of_a_server_whose_log_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    server: Any = SimpleNamespace(log_path=GENUINE_LOG)
    with pytest.raises(ParameterError, match="no poll error in a log that is here"):
        lesson_module.last_refusal(server)  # one that runs elsewhere

    monkeypatch.setattr(lesson_module, "TritonServer", SimpleNamespace)

    assert lesson_module.last_refusal(server) == ENSEMBLE_REFUSED
    assert log_lines(GENUINE_LOG)[0].level in "IWE"
