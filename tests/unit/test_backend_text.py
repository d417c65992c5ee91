# SPDX-License-Identifier: Apache-2.0
"""Decoding at the end, or in steps, gives what vLLM's token-by-token decoding gives."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit import backend_support

tokenizers = pytest.importorskip("tokenizers", reason="comes with vLLM: the CPU or CUDA environment")

TEXTS = ["", "plain", " leading and trailing ", "é ü 中文", "😀🎉 and 👨‍🔬", "line\nline\n"]


@pytest.fixture(scope="module")
def a_byte_tokenizer() -> Any:
    """One token for each byte: characters beyond ASCII take several."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(dict(zip(alphabet, range(256), strict=True)), []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


@pytest.fixture
def a_maker(a_byte_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    backend_support.install(monkeypatch)
    text = importlib.import_module("triton_vllm.text")
    return text.TextMaker(
        SimpleNamespace(_tokenizer=a_byte_tokenizer, encode=lambda text: a_byte_tokenizer.encode(text).ids)
    )


def by_token(tokenizer: Any, prompt: list[int], ids: list[int]) -> str:
    stream = tokenizers.decoders.DecodeStream(ids=prompt, skip_special_tokens=True)
    return "".join(stream.step(tokenizer, token) or "" for token in ids)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_decode_equals_token_by_token_also_when_cut_inside_a_character(
    a_maker: Any, a_byte_tokenizer: Any, text: str, missing: int
) -> None:
    prompt = a_byte_tokenizer.encode("Say 😀:").ids
    ids = a_byte_tokenizer.encode(text).ids
    ids = ids[: len(ids) - missing]

    output = SimpleNamespace(token_ids=ids, finish_reason="length")

    assert a_maker.decode(prompt, output, skip_special_tokens=True) == by_token(a_byte_tokenizer, prompt, ids)


@pytest.mark.parametrize("skip", [True, False])
def test_decode_leaves_out_the_token_that_ended_the_answer(a_maker: Any, a_byte_tokenizer: Any, skip: bool) -> None:
    ids = [*a_byte_tokenizer.encode("done").ids, a_byte_tokenizer.token_to_id("<end>")]

    text = a_maker.decode([], SimpleNamespace(token_ids=ids, finish_reason="stop"), skip_special_tokens=skip)

    assert text == "done"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("missing", [0, 1, 2, 3])
@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_text_that_grows_in_steps_is_the_whole_text(
    a_maker: Any, a_byte_tokenizer: Any, text: str, missing: int, step: int
) -> None:
    prompt = a_byte_tokenizer.encode("Say 😀:").ids
    ids = a_byte_tokenizer.encode(text).ids
    ids = ids[: len(ids) - missing]

    growing = a_maker.growing(prompt, skip_special_tokens=True)
    pieces = [growing.add(ids[at : at + step], last=False) for at in range(0, len(ids), step)]
    pieces.append(growing.add([], last=True))

    assert "".join(pieces) == by_token(a_byte_tokenizer, prompt, ids)
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    ("sampling", "whole", "streamed"),
    [
        ({}, True, True),
        ({"stop": ["a"]}, False, False),
        ({"stop": []}, True, True),
        ({"spaces_between_special_tokens": False}, False, False),
        ({"n": 1, "logprobs": None}, True, True),
        ({"n": 2}, True, False),
        ({"n": "2"}, True, False),
        ({"logprobs": 0}, True, False),
        ({"prompt_logprobs": 1}, True, False),
    ],
)
def test_text_is_made_here_without_stop_strings_and_in_a_stream_of_one_sequence_only(
    a_maker: Any, sampling: dict[str, Any], whole: bool, streamed: bool
) -> None:
    assert a_maker.can_decode(sampling, stream=False) is whole
    assert a_maker.can_decode(sampling, stream=True) is streamed


def test_another_kind_of_tokenizer_is_left_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    backend_support.install(monkeypatch)
    text = importlib.import_module("triton_vllm.text")

    assert text.TextMaker(SimpleNamespace()).can_decode({}, stream=False) is False
