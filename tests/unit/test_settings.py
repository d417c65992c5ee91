# SPDX-License-Identifier: Apache-2.0
"""A wrong parameter is one clear message, read as the user would."""

from collections.abc import Callable
from typing import Any

import pytest

from ensemblekit.errors import ParameterError, UnsupportedMachine
from ensemblekit.settings import check_settings


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
        ({"ENGINE": "fake"}, "'stand-in'", "one of auto, vllm, stand-in"),
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


def test_device_auto_without_a_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert check_settings().resolved_device == "cpu"


@pytest.mark.parametrize(
    ("driver", "cpu_build", "device"),
    [("580.65.06", False, "cuda"), ("535.104.05", False, "cpu"), ("580.65.06", True, "cpu")],
    ids=["new-driver", "old-driver", "vllm-for-cpu"],
)
def test_device_auto_with_a_fake_nvidia_smi_is_what_vllm_can_run_on(
    a_fake_nvidia_smi: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    cpu_build: bool,
    device: str,
) -> None:
    a_fake_nvidia_smi(driver=driver)
    monkeypatch.setattr(
        "ensemblekit.settings.versions_of", lambda names: dict.fromkeys(names if cpu_build else (), "1")
    )

    assert check_settings().resolved_device == device


def test_device_cuda_without_a_gpu_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    with pytest.raises(UnsupportedMachine) as caught:
        check_settings(DEVICE="cuda", ENGINE="vllm")

    assert str(caught.value).splitlines() == [
        "Could not use DEVICE 'cuda'.",
        "Found: a GPU is asked for; nvidia-smi shows none",
        "Hint: use DEVICE 'cpu', or a machine with an NVIDIA GPU and its driver (`nvidia-smi` must list it)",
    ]


def test_device_cuda_with_a_fake_nvidia_smi_of_an_old_driver_names_both_versions(
    a_fake_nvidia_smi: Callable[..., None],
) -> None:
    a_fake_nvidia_smi(driver="535.104.05")

    with pytest.raises(UnsupportedMachine, match=r"driver 535\.104\.05; the locked torch .* needs 580 or newer"):
        check_settings(DEVICE="cuda", ENGINE="vllm")


def test_device_cuda_with_the_stand_in_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert check_settings(DEVICE="cuda", ENGINE="stand-in").device == "cuda"


@pytest.mark.parametrize(
    ("installed", "provider", "engine"),
    [(True, "embedded", "vllm"), (False, "embedded", "stand-in"), (False, "container", "vllm")],
    ids=["full", "quick", "container"],
)
def test_engine_auto_is_vllm_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: bool, provider: str, engine: str
) -> None:
    monkeypatch.setattr("ensemblekit.settings.find_spec", lambda name: object() if installed else None)

    assert check_settings(PROVIDER=provider).engine == engine


def test_documented_release_is_taken_as_nvidia_shipped_it_and_not_otherwise() -> None:
    settings = check_settings(RELEASE="25.03", PROVIDER="container", FLAVOUR="vllm-image")

    assert settings.release_row.triton == "2.56.0"
    for more in ({}, {"PROVIDER": "container", "FLAVOUR": "base-plus-vllm"}):
        with pytest.raises(ParameterError, match=r"only documented[\s\S]*Hint: PROVIDER 'container' with FLAVOUR"):
            check_settings(RELEASE="25.03", **more)
