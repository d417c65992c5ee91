# SPDX-License-Identifier: Apache-2.0
"""Decoding at the end gives what vLLM's token-by-token decoding gives."""

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


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        ({}, True),
        ({"stop": ["a"]}, False),
        ({"stop": []}, True),
        ({"spaces_between_special_tokens": False}, False),
    ],
)
def test_can_decode_at_end_only_without_stop_strings(a_maker: Any, sampling: dict[str, Any], wanted: bool) -> None:
    assert a_maker.can_decode_at_end(sampling) is wanted


def test_another_kind_of_tokenizer_is_left_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    backend_support.install(monkeypatch)
    text = importlib.import_module("triton_vllm.text")

    assert text.TextMaker(SimpleNamespace()).can_decode_at_end({}) is False
