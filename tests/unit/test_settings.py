# SPDX-License-Identifier: Apache-2.0
"""A wrong parameter is one clear message, read as the user would."""

from typing import Any

import pytest

from ensemblekit.errors import ParameterError
from ensemblekit.lesson.settings import check_settings


@pytest.mark.parametrize(
    ("parameters", "found", "hint"),
    [
        ({"RELEASE": "23.01"}, "24.07, 24.08, 24.09, 24.10", "RELEASE 24.08"),
        ({"RELEASE": 24.1}, "valid string", 'RELEASE = "24.08"'),
        ({"FLAVOUR": "vllm-imag"}, "'vllm-image', 'base-plus-vllm' or 'custom-build'", "one of vllm-image"),
        ({"PROVIDER": "docker"}, "'embedded'", "one of embedded"),
        ({"PROVIDER": "attach"}, "a URL belongs to PROVIDER 'attach'", "-p URL 127.0.0.1:8000"),
        ({"URL": "127.0.0.1:8000"}, "a URL belongs to PROVIDER 'attach'", "-p PROVIDER attach"),
        ({"DEVICE": "gpu"}, "'cuda'", "one of auto, cpu, cuda"),
        ({"ENGINE": "fake"}, "'stand-in'", "one of vllm, stand-in"),
        ({"MODEL": 135}, "valid string", "parameters cell"),
        ({"READY_TIMEOUT_S": "abc"}, "valid number", "for example 600"),
        ({"READY_TIMEOUT_S": -1}, "greater than 0", "for example 600"),
        ({"READY_TIMEOUT_S": True}, "valid number", "for example 600"),
        ({"REPOSITORY": "/nowhere/at/all"}, "no such folder", "one folder per model"),
        ({"RELAESE": "24.08"}, "no such parameter", "RELEASE"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_check_settings_wrong_parameter_is_one_clear_message(parameters: dict[str, Any], found: str, hint: str) -> None:
    with pytest.raises(ParameterError) as caught:
        check_settings(**parameters)

    text = str(caught.value)
    assert found in caught.value.found
    assert hint in caught.value.hint
    assert len(text.splitlines()) == 3
    assert "pydantic" not in text


def test_check_settings_whole_seconds_are_accepted() -> None:
    assert check_settings(READY_TIMEOUT_S=60).ready_timeout_s == 60.0


def test_check_settings_text_says_what_runs() -> None:
    text = str(check_settings(RELEASE="24.10", ENGINE="stand-in"))

    assert text == "Triton 24.10 (vllm-image), provider embedded, llm: a Python stand-in"
