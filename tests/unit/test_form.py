# SPDX-License-Identifier: Apache-2.0
"""The form of lesson 10: each button gives what its plain function gives, and shows errors in place."""

from pathlib import Path

import ipywidgets as widgets
import pytest

from ensemblekit.lesson.widgets import diagnosis_form
from tests.conftest import DATA

GENUINE = DATA / "logs" / "genuine-24.08-ensemble-off.log"


def _click(form: widgets.VBox, name: str) -> str:
    *_fields, buttons, answer = form.children
    next(button for button in buttons.children if button.description == name).click()
    return str(answer.value)


def test_form_buttons_answer_in_place() -> None:
    form = diagnosis_form(DATA / "report_repository", GENUINE, "24.08/vllm-image")

    assert "CAUSE E101" in _click(form, "Explain")
    assert "nothing found" in _click(form, "Lint")


@pytest.mark.parametrize("name", ["Lint", "Explain", "Probe"])
def test_form_shows_an_error_as_text(tmp_path: Path, name: str) -> None:
    form = diagnosis_form(tmp_path / "none", tmp_path / "none", "/none")

    assert "Could not" in _click(form, name)
