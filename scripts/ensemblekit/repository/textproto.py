# SPDX-License-Identifier: Apache-2.0
"""Triton's schema of a config.pbtxt, and the places of its fields: protobuf's own Python parser does not tell them.

For the places the file is read as a tree of fields with lines and offsets, without the schema, so that even a file
that the schema refuses can be located in.
"""

import re
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf import text_format
from google.protobuf.message import Message

__all__ = ["Field", "Key", "Source", "model_config_pb2", "to_text"]


def _schema() -> ModuleType:
    """Return tritonclient's compiled schema without the rest of its package, whose gRPC and numpy take 0.3 s to import.

    Under its own name, so that tritonclient itself finds it: a schema must be registered once only.
    """
    name = "tritonclient.grpc.model_config_pb2"
    package = find_spec("tritonclient")
    if name not in sys.modules and package and package.origin:
        spec = spec_from_file_location(name, Path(package.origin).parent / "grpc" / "model_config_pb2.py")
        if spec and spec.loader:
            sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


if TYPE_CHECKING:
    from tritonclient.grpc import model_config_pb2
else:
    model_config_pb2 = _schema()

_TOKEN = re.compile(
    r"""(?P<space>\s+|\#[^\n]*)|(?P<text>"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)|(?P<mark>[{}\[\]<>:,;])"""
    r"""|(?P<word>[^\s\#"'{}\[\]<>:,;]+)""",
    re.VERBOSE,
)
_OPEN, _CLOSE = "{<", "}>"
# a field's name, the index of one of several, or (subfield, its value) to choose one of several
Key = str | int | tuple[str, str]


def to_text(message: Message) -> str:
    """Return a message as the text of a config.pbtxt."""
    return str(text_format.MessageToString(message))


@dataclass
class Field:
    """One field with its value or its own fields."""

    name: str
    line: int  # the line of its name, from 1; of an element in a list, the line on which the element begins
    start: int  # offset of the statement's first character; that of the whole list for an element of one
    end: int = 0  # offset behind the statement
    value: str = ""  # the value as text without quotes, empty for a message
    value_span: tuple[int, int] = (0, 0)
    fields: list["Field"] = field(default_factory=list)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


class Source:
    """The text of one config.pbtxt, in which fields can be found."""

    def __init__(self, text: str) -> None:
        """Read the tree; a text that is no protobuf text gives what could be understood of it."""
        self.text = text
        self._breaks = [match.start() for match in re.finditer("\n", text)]
        self._tokens = [
            _Token(match.lastgroup or "", match[0], match.start(), match.end())
            for match in _TOKEN.finditer(text)
            if match.lastgroup != "space"
        ]
        self._at = 0
        self._found: dict[tuple[Key, ...], Sequence[Field]] = {}
        self.fields = list(self._read_fields())

    def find(self, *keys: Key) -> Field | None:
        """Return the field under this path, None if it is not there.

        >>> source = Source('step [ { model_name: "a" }, { model_name: "b" } ]')
        >>> source.find("step", 1, "model_name").value
        'b'
        """
        found = self._all(keys)
        return found[0] if found else None

    def _all(self, keys: tuple[Key, ...]) -> Sequence[Field]:
        """Return all fields under this path; each part of it is looked for once."""
        if keys not in self._found:
            above, key = self._all(keys[:-1]) if len(keys) > 1 else (), keys[-1]
            if isinstance(key, int):
                self._found[keys] = above[key : key + 1]
            elif isinstance(key, str):
                fields = self.fields if len(keys) == 1 else [child for entry in above for child in entry.fields]
                self._found[keys] = [entry for entry in fields if entry.name == key]
            else:
                self._found[keys] = [entry for entry in above if any((f.name, f.value) == key for f in entry.fields)]
        return self._found[keys]

    def line(self, *keys: Key) -> int | None:
        """Return the line of the field under this path, or of the nearest field above it that is there."""
        for length in range(len(keys), 0, -1):
            if found := self.find(*keys[:length]):
                return found.line
        return None

    def strings(self) -> Iterator[Field]:
        """Yield every field that has a value, in the order of the text."""
        stack = list(reversed(self.fields))
        while stack:
            entry = stack.pop()
            if entry.value:
                yield entry
            stack.extend(reversed(entry.fields))

    def repeated_keys(self) -> Iterator[tuple[Field, Field]]:
        """Yield the two entries of a map that have the same key, of which only the last counts."""
        stack = [self.fields]
        while stack:
            fields, first = stack.pop(), dict[tuple[str, str], Field]()
            for entry in fields:
                stack.append(entry.fields)
                key = next((part.value for part in entry.fields if part.name == "key"), None)
                if key is None:
                    continue
                if before := first.get((entry.name, key)):
                    yield before, entry
                first[entry.name, key] = entry

    def line_of(self, offset: int) -> int:
        """Return the line, from 1, of an offset."""
        return bisect_left(self._breaks, offset) + 1

    def _peek(self) -> _Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self) -> _Token:
        self._at += 1
        return self._tokens[self._at - 1]

    def _read_fields(self, end: str = "") -> Iterator[Field]:
        while (token := self._peek()) and not (end and token.text in end):
            self._take()
            if token.kind == "word":
                yield from self._read_values(token)

    def _read_values(self, name: _Token) -> list[Field]:
        token = self._peek()
        if token and token.text == ":":
            self._take()
            token = self._peek()
        if token and token.text == "[":
            return self._read_list(name)
        return [self._read_value(name, self.line_of(name.start))]

    def _read_list(self, name: _Token) -> list[Field]:
        self._take()
        elements: list[Field] = []
        while (token := self._peek()) and token.text != "]":
            if token.text in (",", ";"):
                self._take()
                continue
            before = self._at
            elements.append(self._read_value(name, self.line_of(token.start)))
            if self._at == before:  # a token that begins no value
                self._take()
        end = self._take().end if self._peek() else len(self.text)
        for element in elements:
            element.end = end
        # an empty list still is a field with a place
        return elements or [Field(name.text, self.line_of(name.start), name.start, end)]

    def _read_value(self, name: _Token, line: int) -> Field:
        entry = Field(name.text, line, name.start, name.end)
        token = self._peek()
        if token and token.text in _OPEN:
            self._take()
            entry.fields = list(self._read_fields(_CLOSE))
            entry.end = self._take().end if self._peek() else len(self.text)
        elif token and token.kind in ("text", "word"):
            parts = [self._take()]
            while token.kind == "text" and (more := self._peek()) and more.kind == "text":
                parts.append(self._take())
            entry.value, entry.end = "".join(_plain(part.text) for part in parts), parts[-1].end
            entry.value_span = (token.start, entry.end)
        return entry


def _plain(text: str) -> str:
    if text[:1] in "\"'":
        return re.sub(r"\\(.)", r"\1", text[1:-1] if text[-1:] == text[:1] and len(text) > 1 else text[1:])
    return text
