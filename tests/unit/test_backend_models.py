# SPDX-License-Identifier: Apache-2.0
"""The Python models of the repository and the stand-in, without a server."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
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


IMAGE = '[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]'


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"chat_input": " "}, "chat_input is empty"),
        ({"chat_input": " [ ] "}, "chat_input is a conversation without a message"),
        (
            {"chat_input": '[{"role": "king", "content": "Hi"}]'},
            "message 1 of chat_input has the role 'king'; it must be",
        ),
        ({"chat_input": '[{"role": {}, "content": "Hi"}]'}, "message 1 of chat_input has the role '{}'; it must be"),
        ({"chat_input": '[{"role": "user"}]'}, "message 1 of chat_input has no content; it must be a text"),
        (
            {"chat_input": '[{"role": "user", "content": 3}]'},
            "message 1 of chat_input has no content; it must be a text",
        ),
        ({"chat_input": '[{"role": "user", "content": "Hi"}, 3]'}, "message 2 of chat_input must be an object such as"),
        (
            {"chat_input": '[{"role": "user", "content": "Hi"}, {"content": "a"}]'},
            "message 2 of chat_input has the role",
        ),
        ({"chat_input": IMAGE}, "message 1 of chat_input has a part that is no text; this model takes text alone"),
        ({"chat_input": '[{"role": "user", "content": "\\ud800"}]'}, "surrogates not allowed"),
        ({"chat_input": "Hi", "sampling_parameters": "{bad"}, "sampling_parameters is not valid JSON"),
        ({"chat_input": "Hi", "sampling_parameters": "[]"}, "must be a JSON object"),
        ({"chat_input": "Hi", "sampling_parameters": "[" * 100_000}, "sampling_parameters is nested too deeply"),
    ],
    ids=[
        *("empty", "no-message", "unknown-role", "no-role", "no-content", "number", "no-object", "role-lost", "image"),
        *("half-a-character", "cut-json", "list", "deep"),
    ],
)
def test_preprocess_bad_request_gets_its_error_and_its_neighbour_an_answer(
    preprocess: Any, inputs: dict[str, str], message: str
) -> None:
    bad, good = preprocess.execute([Request(**inputs), Request(chat_input="Hi")])

    assert message in bad.error.message
    assert bad.error.code == "invalid"
    assert good.error is None


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": [{"type": "text", "text": "Who are"}, {"type": "text", "text": " you?"}]},
]


def test_preprocess_writes_each_message_of_a_conversation_in_its_role(preprocess: Any) -> None:
    (response,) = preprocess.execute([Request(chat_input=json.dumps(TALK))])

    turns = ("system\nBe brief.", "user\nHi", "assistant\nHello.", "user\nWho are you?")
    whole = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    assert response.text("text_input") == whole


def test_preprocess_takes_a_question_for_the_conversation_that_has_it_alone(preprocess: Any) -> None:
    alone = json.dumps([{"role": "user", "content": "Hi"}])

    asked, told = preprocess.execute([Request(chat_input="Hi"), Request(chat_input=alone)])

    assert asked.text("text_input") == told.text("text_input")


@pytest.mark.parametrize(
    "question",
    ["[sic] is what?", "[1, 2, 3]", '["role"]', '[{"content": "no role anywhere"}]', '[{"role": "user"', "[" * 100_000],
)
def test_preprocess_takes_a_text_that_only_begins_like_a_list_for_a_question(preprocess: Any, question: str) -> None:
    (response,) = preprocess.execute([Request(chat_input=question)])

    assert f"<|im_start|>user\n{question}<|im_end|>" in response.text("text_input")


class Tokenizer:
    """A tokenizer with a template, and a mark that it puts before every text."""

    bos_token, bos_token_id = "<s>", 1

    def __init__(self) -> None:
        self.encoded = list[str]()

    def __call__(self, text: str) -> dict[str, list[int]]:
        self.encoded.append(text)
        return {"input_ids": [1, 7]}

    def apply_chat_template(self, chat: list[dict[str, Any]], *, tokenize: bool, add_generation_prompt: bool) -> str:
        assert add_generation_prompt
        assert not tokenize
        if chat[0]["role"] == "assistant":
            raise ValueError("roles must alternate")
        return "<s>" + "|".join(f"{one['role']}:{one['content']}{one.get('tool_calls', '')}" for one in chat)


LOADED = """
import pathlib, sys
import pytest
from tests.unit import backend_support
backend_support.install(pytest.MonkeyPatch())
tokenizer = backend_support.load_model(pathlib.Path(sys.argv[1])).load_tokenizer(sys.argv[2])
print(tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("named", "torch"), [("PreTrainedTokenizerFast", False), ("TokenizersBackend", False), ("Qwen2Tokenizer", True)]
)
def test_preprocess_takes_a_plain_tokenizer_without_torch(tmp_path: Path, named: str, torch: bool) -> None:
    if find_spec("torch") is None:
        pytest.skip("needs the CPU or CUDA environment, not the quick one")
    tokenizers = pytest.importorskip("tokenizers")
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": named, "chat_template": "{{ messages[0].content }}!"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    command = [sys.executable, "-c", LOADED, str(MODELS / "preprocess" / "1" / "model.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo_root(), check=True)

    assert done.stdout == f"Hi! {torch}\n"


@pytest.fixture
def tokenizer(preprocess: Any, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """That of the fixture `preprocess`, as if its config named it."""
    made = Tokenizer()
    monkeypatch.setitem(preprocess.initialize.__globals__, "load_tokenizer", lambda name: made)
    given = {"tokenizer": "a", "default_sampling_parameters": "{}"}
    preprocess.initialize(
        {"model_config": json.dumps({"parameters": {name: {"string_value": given[name]} for name in given}})}
    )
    return made


def test_preprocess_leaves_roles_and_calls_of_tools_to_the_template(preprocess: Any, tokenizer: Tokenizer) -> None:
    calls = [{"id": "1", "function": {"name": "f"}}]
    chat = [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "4"},
    ]

    (response,) = preprocess.execute([Request(chat_input=json.dumps(chat))])

    assert response.text("text_input") == f"system:Be brief.|assistant:{calls}|tool:4"


def test_preprocess_says_in_the_templates_words_why_it_refuses_a_conversation(
    preprocess: Any, tokenizer: Tokenizer
) -> None:
    (response,) = preprocess.execute([Request(chat_input='[{"role": "assistant", "content": "Hi"}]')])

    assert response.error.message == "the model's chat template refuses this conversation: roles must alternate"
    assert response.error.code == "invalid"


def test_preprocess_encodes_nothing_and_doubles_no_mark(preprocess: Any, tokenizer: Tokenizer) -> None:
    """The text goes to the language model, whose tokenizer puts its mark in front, once."""
    at_start = list(tokenizer.encoded)

    (response,) = preprocess.execute([Request(chat_input="Hi")])

    assert response.text("text_input") == "user:Hi"
    assert tokenizer.encoded == at_start


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


def test_stand_in_repeats_the_last_of_several_questions(stand_in: Any) -> None:
    prompt = PROMPT + "I am one.<|im_end|>\n<|im_start|>user\nReally?<|im_end|>\n<|im_start|>assistant\n"

    (response,) = answers(stand_in, text_input=prompt, exclude_input_in_output=True)

    assert response.text("text_output") == "(stand-in) You asked: Really?"


@pytest.mark.parametrize(
    ("parameters", "texts", "reasons"),
    [
        ({}, ["(stand-in) You asked: Who are  you?"], ["stop"]),
        ({"max_tokens": 4}, ["(stand-in) You asked: Who"], ["length"]),
        ({"stop": "Who"}, ["(stand-in) You asked: "], ["stop"]),
        ({"stop": ["you?", "are"], "n": 2}, ["(stand-in) You asked: Who "] * 2, ["stop"] * 2),
    ],
    ids=["whole", "limit", "stop", "two-with-stop"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_stand_in_tells_why_it_ends_and_counts_its_words(
    stand_in: Any, parameters: dict[str, Any], texts: list[str], reasons: list[str], stream: bool
) -> None:
    asked = {f"return_{name}": True for name in ("finish_reason", "num_input_tokens", "num_output_tokens")}

    told = answers(
        stand_in,
        text_input=PROMPT,
        stream=stream,
        exclude_input_in_output=True,
        sampling_parameters=json.dumps(parameters),
        **asked,
    )

    def of_each(name: str) -> list[Any]:
        return [one.tensors[name].values.tolist() for one in told]

    pieces = zip(*of_each("text_output"), strict=True)
    assert [b"".join(sequence).decode() for sequence in pieces] == texts
    assert [reason.decode() for reason in of_each("finish_reason")[-1]] == reasons
    assert {tuple(count) for count in of_each("num_input_tokens")} == {(len(PROMPT.split()),)}
    assert sum(sum(counts) for counts in of_each("num_output_tokens")) == sum(len(text.split()) for text in texts)


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
        {"text_input": "word " * 2048},
        {"text_input": "a", "sampling_parameters": '{"n": 65}'},
        {"text_input": "a", "sampling_parameters": '{"stop": [3]}'},
    ],
    ids=["empty", "stream-with-prompt", "cut-json", "long", "many", "stop"],
)
def test_stand_in_bad_request_gets_one_error(stand_in: Any, inputs: dict[str, Any]) -> None:
    (response,) = answers(stand_in, **inputs)

    assert response.error.code == "invalid"


def test_ensemble_feeds_every_input_of_llm_from_preprocess() -> None:
    steps = {step.model_name: step for step in read_config(MODELS / "ensemble").ensemble_scheduling.step}

    assert list(steps) == ["preprocess", "llm", "postprocess"]
    # what else the answer tells is for who asks llm for it, as the ensemble for OpenAI's API does
    stand_in_inputs = {tensor.name for tensor in read_config(STAND_IN).input if not tensor.name.startswith("return_")}
    assert set(steps["llm"].input_map) == stand_in_inputs
    assert set(steps["llm"].input_map.values()) == set(steps["preprocess"].output_map.values())
    assert set(steps["postprocess"].input_map.values()) == set(steps["llm"].output_map.values())


@pytest.mark.parametrize("model", ["preprocess", "llm", "postprocess", "ensemble"])
def test_every_model_of_the_repository_has_a_valid_config_and_a_version(model: str) -> None:
    config = read_config(MODELS / model)

    assert config.name == model
    assert config.max_batch_size == 0
    assert (MODELS / model / "1").is_dir()
