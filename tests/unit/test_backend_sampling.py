# SPDX-License-Identifier: Apache-2.0
"""Sampling parameters: from what a client sends to what vLLM takes, and the errors on the way."""

import importlib
from dataclasses import dataclass
from typing import Any

import pytest

from tests.unit import backend_support

msgspec = pytest.importorskip("msgspec", reason="comes with vLLM: the CPU or CUDA environment")


@dataclass
class Constraint:
    """Checks itself as vLLM's does, with an error that is no ValueError."""

    regex: str | None = None
    fail: int = 0

    def __post_init__(self) -> None:
        if self.fail:
            raise LookupError("one constraint, please")


class Params(msgspec.Struct):  # type: ignore[misc, name-defined]
    """A cut-down SamplingParams."""

    temperature: float = 1.0
    max_tokens: int | None = 16
    ignore_eos: bool = False
    stop: str | list[str] | None = None
    logit_bias: dict[int, float] | None = None
    structured_outputs: Constraint | None = None
    detokenize: bool = True
    _hidden: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError("temperature must be non-negative")


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> Any:
    backend_support.install(monkeypatch)
    return importlib.import_module("triton_vllm.sampling")


def test_values_that_fit_are_taken_and_the_backend_adds_its_own(sampling: Any) -> None:
    params = sampling.make_sampling_params(Params, {"temperature": 0, "stop": ["a"]}, detokenize=False)

    assert (params.temperature, params.stop, params.detokenize) == (0.0, ["a"], False)


def test_numbers_written_as_text_are_numbers(sampling: Any) -> None:
    given = {"temperature": "0.5", "max_tokens": "7", "ignore_eos": "true", "stop": "7"}

    params = sampling.make_sampling_params(Params, given)

    assert (params.temperature, params.max_tokens, params.ignore_eos, params.stop) == (0.5, 7, True, "7")


def test_structured_outputs_come_as_an_object_or_as_its_json(sampling: Any) -> None:
    for given in ({"regex": "a+"}, '{"regex": "a+"}'):
        params = sampling.make_sampling_params(Params, {"structured_outputs": given})

        assert params.structured_outputs == Constraint(regex="a+")


def test_json_object_keys_become_token_ids(sampling: Any) -> None:
    assert sampling.make_sampling_params(Params, {"logit_bias": {"5": 1.5}}).logit_bias == {5: 1.5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temprature": 1}, 'unknown sampling parameter "temprature"; did you mean "temperature"?'),
        ({"length_penalty": 1}, 'unknown sampling parameter "length_penalty": vLLM had it up to 0.6'),
        ({"image": "aGk="}, 'unknown sampling parameter "image": this backend takes text and answers with text'),
        ({"structured_outputs": "["}, "structured_outputs is not valid JSON"),
        ({"structured_outputs": {"fail": 1}}, "refused by vLLM: one constraint, please"),
        ({"xyz": 1}, 'unknown sampling parameter "xyz"'),
        ({"detokenize": False}, 'unknown sampling parameter "detokenize"'),
        ({"_hidden": 1}, 'unknown sampling parameter "_hidden"'),
        ({"temperature": "hot"}, 'sampling parameter "temperature": Expected `float`'),
        ({"max_tokens": 1.5}, 'sampling parameter "max_tokens": Expected `int | null`'),
        ({"temperature": -1}, "refused by vLLM: temperature must be non-negative"),
    ],
    ids=[
        "near-miss",
        "retired",
        "other-task",
        "cut-json",
        "own-error",
        "unknown",
        "reserved",
        "private",
        "text",
        "fraction",
        "refused",
    ],
)
def test_value_that_cannot_be_taken_is_named(sampling: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(sampling.BadRequest) as raised:
        sampling.make_sampling_params(Params, given)

    assert message in str(raised.value)


@pytest.mark.parametrize("text", ["", "  "])
def test_no_text_is_no_parameters(sampling: Any, text: str) -> None:
    assert sampling.parse_json(text, "sampling_parameters") == {}


@pytest.mark.parametrize("text", ["{", "[]", "3", '"a"'])
def test_text_that_is_no_object_is_refused(sampling: Any, text: str) -> None:
    with pytest.raises(sampling.BadRequest, match="sampling_parameters"):
        sampling.parse_json(text, "sampling_parameters")
