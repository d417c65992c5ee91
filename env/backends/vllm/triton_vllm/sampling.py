# SPDX-License-Identifier: Apache-2.0
"""From what a client sends to vLLM's SamplingParams, with an error that names what is wrong."""

import difflib
import json
import math
from typing import Any

import msgspec

# Decided by the backend for each request, or vLLM's own business; a client cannot set them.
RESERVED = frozenset({"output_kind", "detokenize", "skip_clone", "output_text_buffer_length", "extra_args"})
# What they ask for is in no output of this backend.
WITHOUT_EFFECT = frozenset(
    {"prompt_logprobs", "prompt_logprob_token_ids", "prompt_logprob_start", "flat_logprobs"}
    | {"routed_experts_prompt_start", "stream_interval"}
)
RETIRED = frozenset({"best_of", "use_beam_search", "length_penalty", "early_stopping"})  # known to vLLM 0.5
OTHER_TASKS = frozenset({"image", "embedding_request"})  # inputs of upstream's later releases
TYPED_WRONG = 0.85  # how alike two names are that a slip of the finger explains
LONGEST_NAME = 60


class BadRequest(Exception):  # noqa: N818 - what it is, not what went wrong inside
    """The request cannot be served as it stands; the text goes to the client."""


class UnknownAdapter(BadRequest):
    """The LoRA adapter that a request names is not there; upstream's clients look for its text as it is."""


def parse_json(text: str, source: str) -> dict[str, Any]:
    """Return a JSON object.

    Args:
        text: What the client sent; nothing at all counts as an empty object.
        source: Where it came from, for the error.

    Raises:
        BadRequest: It is not a JSON object, or has numbers beyond what a float holds.
    """
    if not text.strip():
        return {}
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise BadRequest(f"{source} is nested too deeply") from error
    except ValueError as error:
        raise BadRequest(f"{source} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadRequest(f'{source} must be a JSON object such as {{"max_tokens": 64}}, not {type(value).__name__}')
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:LONGEST_NAME]} is not a finite number")
    return value


def make_sampling_params(kind: type, given: dict[str, Any], **decided: Any) -> Any:
    """Return the sampling parameters of one request.

    Args:
        kind: vLLM's SamplingParams.
        given: What the client asked for. Numbers may come as strings, as request parameters do.
        decided: What the backend sets itself.

    Raises:
        BadRequest: An unknown name, a value of the wrong type, or one that vLLM refuses.
    """
    types = field_types(kind)
    try:
        values = {name: _convert(name, value, types) for name, value in given.items()}
        return kind(**values, **decided)
    except BadRequest:
        raise
    except Exception as error:  # vLLM raises several types here, all about the values
        raise BadRequest(f"sampling parameters refused by vLLM: {error}") from error


def field_types(kind: type) -> dict[str, Any]:
    """Return name and type of every sampling parameter that a client may set."""
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    return {name: type_ for name, type_ in fields.items() if name not in RESERVED and not name.startswith("_")}


def _convert(name: str, value: Any, types: dict[str, Any]) -> Any:
    if name in WITHOUT_EFFECT:
        raise BadRequest(
            f'sampling parameter "{name}" has no effect: no output of this backend carries what it asks for'
        )
    if name not in types:
        raise BadRequest(f'unknown sampling parameter "{name[:LONGEST_NAME]}"{_hint(name, types)}')
    if name == "structured_outputs" and isinstance(value, str):  # as a request parameter, which cannot be an object
        value = parse_json(value, name)
    try:
        return msgspec.convert(value, types[name], strict=not isinstance(value, str), str_keys=True)
    except msgspec.ValidationError as error:
        raise BadRequest(f'sampling parameter "{name}": {error}') from error
    except TypeError:  # a type that msgspec does not know; vLLM itself checks the value
        return value


def _hint(name: str, types: dict[str, Any]) -> str:
    if name in RETIRED:
        return ": vLLM had it up to 0.6"
    if name in OTHER_TASKS:
        return ": this backend takes text and answers with text"
    near = difflib.get_close_matches(name, types, n=1, cutoff=TYPED_WRONG)
    return f'; did you mean "{near[0]}"?' if near else ""
