# SPDX-License-Identifier: Apache-2.0
"""The Python models of the repository and the stand-in, without a server."""

import json
from typing import Any

import pytest

from ensemblekit.paths import repo_root
from ensemblekit.repository.read import read_config
from tests.unit import backend_support
from tests.unit.backend_support import Request, Sender

MODELS = repo_root() / "model_repo"
STAND_IN = repo_root() / "env" / "stand_in_llm"


def an_instance(path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    backend_support.install(monkeypatch)
    model = backend_support.load_model(path / "1" / "model.py").TritonPythonModel()
    parameters = read_config(path).parameters
    given = {name: {"string_value": value.string_value} for name, value in parameters.items()}
    if hasattr(model, "initialize"):
        model.initialize({"model_config": json.dumps({"parameters": given})})
    return model


@pytest.fixture
def preprocess(monkeypatch: pytest.MonkeyPatch) -> Any:
    return an_instance(MODELS / "preprocess", monkeypatch)


@pytest.fixture
def postprocess(monkeypatch: pytest.MonkeyPatch) -> Any:
    return an_instance(MODELS / "postprocess", monkeypatch)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    return an_instance(STAND_IN, monkeypatch)


def answers(model: Any, **inputs: Any) -> list[Any]:
    request, sender = Request(**inputs), Sender()
    request.get_response_sender = lambda: sender  # type: ignore[attr-defined]
    model.execute([request])
    assert sender.closed
    return [response for response, _ in sender.sent]


def test_preprocess_puts_the_chat_template_around_the_question(preprocess: Any) -> None:
    (response,) = preprocess.execute([Request(chat_input="Hi {you}")])

    prompt = response.text("text_input")
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_start|>user\nHi {you}<|im_end|>\n<|im_start|>assistant\n")


def test_preprocess_is_greedy_unless_asked_otherwise(preprocess: Any) -> None:
    (response,) = preprocess.execute([Request(chat_input="Hi")])

    assert json.loads(response.text("sampling_parameters")) == {"max_tokens": 128, "temperature": 0.0}
    assert not response.tensors["stream"].values[0]
    assert response.tensors["exclude_input_in_output"].values[0]


def test_preprocess_merges_request_parameters_under_the_json_tensor(preprocess: Any) -> None:
    request = Request('{"top_p": 0.5, "max_tokens": 3}', chat_input="Hi", sampling_parameters='{"max_tokens": 4}')

    (response,) = preprocess.execute([request])

    merged = json.loads(response.text("sampling_parameters"))
    assert merged == {"max_tokens": 4, "temperature": 0.0, "top_p": 0.5}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"chat_input": " "}, "chat_input is empty"),
        ({"chat_input": "Hi", "sampling_parameters": "{bad"}, "sampling_parameters is not valid JSON"),
        ({"chat_input": "Hi", "sampling_parameters": "[]"}, "must be a JSON object"),
        ({"chat_input": "Hi", "sampling_parameters": "[" * 100_000}, "sampling_parameters is nested too deeply"),
    ],
    ids=["empty", "cut-json", "list", "deep"],
)
def test_preprocess_bad_request_gets_its_error_and_its_neighbour_an_answer(
    preprocess: Any, inputs: dict[str, str], message: str
) -> None:
    bad, good = preprocess.execute([Request(**inputs), Request(chat_input="Hi")])

    assert message in bad.error.message
    assert bad.error.code == "invalid"
    assert good.error is None


@pytest.mark.parametrize(
    ("generated", "wanted"),
    [
        ("Paris.<|im_end|>", "Paris."),
        (" is", " is"),
        ("\n", "\n"),
        ("", ""),
        ("<|im_end|>", ""),
        ("a <b|", "a <b|"),
    ],
)
def test_postprocess_cuts_the_marker_and_nothing_else(postprocess: Any, generated: str, wanted: str) -> None:
    (response,) = postprocess.execute([Request(generated=generated)])

    assert response.text("text_output") == wanted


PROMPT = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWho are  you?<|im_end|>\n<|im_start|>assistant\n"


def test_stand_in_says_that_it_is_one(stand_in: Any) -> None:
    (response,) = answers(stand_in, text_input=PROMPT, exclude_input_in_output=True)

    assert response.text("text_output") == "(stand-in) You asked: Who are  you?"


def test_stand_in_stream_joins_to_the_whole(stand_in: Any) -> None:
    pieces = answers(stand_in, text_input=PROMPT, stream=True)

    texts = [piece.text("text_output") for piece in pieces]
    assert len(texts) == 6
    assert "".join(texts) == "(stand-in) You asked: Who are  you?"


def test_stand_in_takes_a_word_for_a_token(stand_in: Any) -> None:
    (response,) = answers(
        stand_in, text_input=PROMPT, exclude_input_in_output=True, sampling_parameters='{"max_tokens": 2}'
    )

    assert response.text("text_output") == "(stand-in) You"


def test_stand_in_refuses_a_misspelt_parameter_by_name(stand_in: Any) -> None:
    (response,) = answers(stand_in, text_input=PROMPT, sampling_parameters='{"temprature": 0.5}')

    assert response.error.message == 'unknown sampling parameter "temprature"'


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ('{"max_tokens": 1e999}', "max_tokens must be a whole number, at least 1, not inf"),
        ('{"max_tokens": 0}', "max_tokens must be a whole number, at least 1, not 0"),
        ('{"max_tokens": "many"}', "max_tokens must be a whole number, at least 1, not many"),
        ('{"max_tokens": [1]}', "max_tokens must be a whole number, at least 1, not [1]"),
        ("[1]", "sampling_parameters must be a JSON object, not list"),
        ("3", "sampling_parameters must be a JSON object, not int"),
        (DEEP, "sampling_parameters is nested too deeply"),
    ],
    ids=["infinite", "zero", "text", "list", "no-object", "number", "deep"],
)
def test_stand_in_says_what_is_wrong_with_its_parameters(stand_in: Any, parameters: str, message: str) -> None:
    (response,) = answers(stand_in, text_input=PROMPT, sampling_parameters=parameters)

    assert response.error.message == message
    assert response.error.code == "invalid"


@pytest.mark.parametrize("parameters", ['{"max_tokens": null}', '{"max_tokens": "20"}'])
def test_stand_in_takes_a_limit_as_vllm_does(stand_in: Any, parameters: str) -> None:
    (response,) = answers(stand_in, text_input=PROMPT, exclude_input_in_output=True, sampling_parameters=parameters)

    assert response.text("text_output") == "(stand-in) You asked: Who are  you?"


def test_stand_in_unasked_puts_the_prompt_in_front(stand_in: Any) -> None:
    (response,) = answers(stand_in, text_input="Hi")

    assert response.text("text_output") == "Hi(stand-in) You asked: Hi"


@pytest.mark.parametrize(
    "inputs",
    [
        {"text_input": ""},
        {"text_input": "a", "stream": True, "exclude_input_in_output": False},
        {"text_input": "a", "sampling_parameters": "{"},
    ],
    ids=["empty", "stream-with-prompt", "cut-json"],
)
def test_stand_in_bad_request_gets_one_error(stand_in: Any, inputs: dict[str, Any]) -> None:
    (response,) = answers(stand_in, **inputs)

    assert response.error.code == "invalid"


def test_ensemble_feeds_every_input_of_llm_from_preprocess() -> None:
    steps = {step.model_name: step for step in read_config(MODELS / "ensemble").ensemble_scheduling.step}

    assert list(steps) == ["preprocess", "llm", "postprocess"]
    stand_in_inputs = {tensor.name for tensor in read_config(STAND_IN).input}
    assert set(steps["llm"].input_map) == stand_in_inputs
    assert set(steps["llm"].input_map.values()) == set(steps["preprocess"].output_map.values())
    assert set(steps["postprocess"].input_map.values()) == set(steps["llm"].output_map.values())


@pytest.mark.parametrize("model", ["preprocess", "llm", "postprocess", "ensemble"])
def test_every_model_of_the_repository_has_a_valid_config_and_a_version(model: str) -> None:
    config = read_config(MODELS / model)

    assert config.name == model
    assert config.max_batch_size == 0
    assert (MODELS / model / "1").is_dir()
