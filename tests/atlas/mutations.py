# SPDX-License-Identifier: Apache-2.0
"""Random small damage to a good config: what a tired person does to it."""

import random
from collections.abc import Iterator

from ensemblekit.repository.textproto import Field, Source

__all__ = ["mutate"]

TYPES = ("TYPE_STRING", "TYPE_BOOL", "TYPE_INT32", "TYPE_FP32", "TYPE_TEXT")
EXTRA = (
    'backend: "python"\n',
    "instance_group [ { kind: KIND_CPU } ]\n",
    "max_batch_size: 8\n",
    "version_policy { specific { versions: [ 2 ] } }\n",
    'output [ { name: "more" data_type: TYPE_STRING dims: [ 1 ] } ]\n',
    'input [ { name: "more" data_type: TYPE_STRING dims: [ 1 ] } ]\n',
    "model_transaction_policy { decoupled: true }\n",
    "optimization { priority: PRIORITY_MAX }\n",
    "dynamic_batching { }\n",
)


def mutate(text: str, seed: int) -> tuple[str, str]:
    """Return a config with one mutation, the same for the same seed, and what was done."""
    chance = random.Random(seed)
    fields = list(_all(Source(text).fields))
    kind = chance.choice(("delete", "delete", "rename", "rename", "type", "number", "swap", "add", "repeat", "brace"))
    entry = chance.choice(fields)
    valued = [f for f in fields if f.value_span[1] and text[f.value_span[0]] in "\"'"]
    if kind == "rename":
        entry = chance.choice(valued)
        start, end = entry.value_span
        word = chance.choice((f"{entry.value}x", entry.value[:-1], entry.value.upper(), chance.choice(valued).value))
        return f'{text[:start]}"{word}"{text[end:]}', f"{entry.name} {entry.value!r} to {word!r}"
    if kind == "type" and (typed := [f for f in fields if f.value.startswith("TYPE_")]):
        return _put(text, chance.choice(typed), chance.choice(TYPES))
    if kind == "number" and (numbers := [f for f in fields if f.value.lstrip("-").isdigit()]):
        return _put(text, chance.choice(numbers), str(chance.choice((-1, 0, 1, 2, 3, 7))))
    if kind == "swap" and (maps := [f for f in fields if f.name in ("input_map", "output_map")]):
        return _swap(text, chance.choice(maps))
    if kind == "add":
        extra = chance.choice(EXTRA)
        return text + extra, f"added {extra.strip()}"
    if kind == "repeat":
        return text[: entry.end] + " " + text[entry.start :], f"{entry.name} twice"
    if kind == "brace":
        at = chance.choice([i for i, letter in enumerate(text) if letter in '{}[]"'])
        return text[:at] + text[at + 1 :], f"without the {text[at]!r} at {at}"
    return text[: entry.start] + text[entry.end :], f"without {entry.name} {entry.value!r} (line {entry.line})"


def _all(fields: list[Field]) -> Iterator[Field]:
    for entry in fields:
        yield entry
        yield from _all(entry.fields)


def _put(text: str, entry: Field, value: str) -> tuple[str, str]:
    start, end = entry.value_span
    return text[:start] + value + text[end:], f"{entry.name} {entry.value} to {value} (line {entry.line})"


def _swap(text: str, entry: Field) -> tuple[str, str]:
    key, value = (next(f for f in entry.fields if f.name == name) for name in ("key", "value"))
    (a, b), (c, d) = key.value_span, value.value_span
    return text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:], f"key and value of {key.value} swapped"
