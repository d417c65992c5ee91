# SPDX-License-Identifier: Apache-2.0
"""Decoding at the end, or in steps, gives what vLLM's token-by-token decoding gives."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit import backend_support

pytest.importorskip("msgspec", reason="comes with vLLM: the CPU or CUDA environment")
pytest.importorskip("tokenizers", reason="comes with vLLM: the CPU or CUDA environment")

import tokenizers

from tests.unit.fake_vllm import SamplingParams, byte_tokenizer

TEXTS = ["", "plain", " leading and trailing ", "é ü 中文", "😀🎉 and 👨‍🔬", "line\nline\n"]


@pytest.fixture(scope="module")
def a_byte_tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture
def a_detokenizer(a_byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    backend_support.install(monkeypatch)
    module = importlib.import_module("triton_vllm.detokenizer")
    return module.Detokenizer(
        SimpleNamespace(_tokenizer=a_byte_tokenizer, encode=lambda text: a_byte_tokenizer.encode(text).ids)
    )


def by_token(tokenizer: Any, prompt: list[int], ids: list[int]) -> str:
    stream = tokenizers.decoders.DecodeStream(ids=prompt, skip_special_tokens=True)
    return "".join(stream.step(tokenizer, token) or "" for token in ids)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_decode_equals_token_by_token_also_when_cut_inside_a_character(
    a_detokenizer: Any, a_byte_tokenizer: Any, text: str, missing: int
) -> None:
    prompt = a_byte_tokenizer.encode("Say 😀:").ids
    ids = a_byte_tokenizer.encode(text).ids
    ids = ids[: len(ids) - missing]

    output = SimpleNamespace(token_ids=ids, finish_reason="length")

    assert a_detokenizer.decode(prompt, output, skip_special_tokens=True) == by_token(a_byte_tokenizer, prompt, ids)


@pytest.mark.parametrize("skip", [True, False])
def test_decode_leaves_out_the_token_that_ended_the_answer(
    a_detokenizer: Any, a_byte_tokenizer: Any, skip: bool
) -> None:
    ids = [*a_byte_tokenizer.encode("done").ids, a_byte_tokenizer.token_to_id("<end>")]

    text = a_detokenizer.decode([], SimpleNamespace(token_ids=ids, finish_reason="stop"), skip_special_tokens=skip)

    assert text == "done"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("missing", [0, 1, 2, 3])
@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_text_that_grows_in_steps_is_the_whole_text(
    a_detokenizer: Any, a_byte_tokenizer: Any, text: str, missing: int, step: int
) -> None:
    prompt = a_byte_tokenizer.encode("Say 😀:").ids
    ids = a_byte_tokenizer.encode(text).ids
    ids = ids[: len(ids) - missing]

    growing = a_detokenizer.start(prompt, skip_special_tokens=True)
    pieces = [growing.add(ids[at : at + step], last=False) for at in range(0, len(ids), step)]
    pieces.append(growing.add([], last=True))

    assert "".join(pieces) == by_token(a_byte_tokenizer, prompt, ids)
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    ("sampling", "ours"),
    [
        ({}, True),
        ({"stop": ["a"]}, False),
        ({"stop": []}, True),
        ({"bad_words": ["a"]}, False),
        ({"structured_outputs": {"regex": "a"}}, False),
        ({"spaces_between_special_tokens": False}, False),
        ({"n": 2, "logprobs": 0}, True),
    ],
)
def test_text_is_made_here_unless_vllm_has_to_see_it(a_detokenizer: Any, sampling: dict[str, Any], ours: bool) -> None:
    assert a_detokenizer.can_decode(SamplingParams(**sampling)) is ours


def test_another_kind_of_tokenizer_is_left_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    backend_support.install(monkeypatch)
    module = importlib.import_module("triton_vllm.detokenizer")

    assert module.Detokenizer(SimpleNamespace()).can_decode(SamplingParams()) is False
