# SPDX-License-Identifier: Apache-2.0
"""From the lines of a log to what happened: each line that says something, with its kind, its model and its words."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from ensemblekit.faults.catalogue import DEPENDS, HARMLESS, look_up, may_be_known
from ensemblekit.faults.fault import Fault
from ensemblekit.faults.log import LogLine, Printed

__all__ = ["Happening", "Kind", "Recogniser", "with_fault"]

Kind = Literal[
    "loading", "loaded", "unloading", "unloaded",
    "refused",  # its config was read and not accepted
    "failed",  # it was loaded and that failed
    "blocked",  # an ensemble, or a dependency, was not accepted
    "stub",  # said of a model's process; said again, with the model's name, when the load fails
    "start",  # the server itself cannot go on
    "gives up",  # the sum of what was said before
    "incomplete",  # the same of a server that stays, with --exit-on-error=false
    "listening", "stopped", "printed", "exception", "unknown",
]  # fmt: skip
NO_FILE = "E215"  # names a path: model folder, version folder, file
EXCERPT = 600  # characters of a message that are kept
LONGEST_TRACE = 400  # lines of a printed traceback


@dataclass(frozen=True)
class Happening:
    """What one line of a log says.

    Attributes:
        kind: See `Kind`.
        number: The line's number, from 1.
        time_s: Seconds since the log's first entry; None for what is printed without a time.
        text: The server's words.
        model: The model it is about, empty if none is named.
        fault: The catalogue's record; None for a step that is no fault, or for words that are unknown.
        values: The names in the words, by the catalogue's fields.
    """

    kind: Kind
    number: int
    time_s: float | None
    text: str
    model: str = ""
    fault: Fault | None = None
    values: dict[str, str] = field(default_factory=dict)


_STEPS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("loading", re.compile(r"^loading: (.+):\d+$")),
    ("loaded", re.compile(r"^successfully loaded '([^']+)'")),
    ("unloading", re.compile(r"^unloading: (.+):\d+$")),
    ("unloaded", re.compile(r"^successfully unloaded '([^']+)'")),
)
_REFUSED = re.compile(r"^Poll failed for model directory '([^']*)': ")
_FAILED = re.compile(r"^failed to load '([^']+)' version -?\d+: (.*)$", re.DOTALL)
_INSTANCE = re.compile(r"^(?:ERROR: )?Failed to create instance: (.*)$", re.DOTALL)
_STUB = re.compile(r"^ *Failed to (?:pre)?initialize Python stub[^:]*: (.*)$", re.DOTALL)
_LISTENS = re.compile(r"^Started (HTTPService|GRPCInferenceService) at ")
_GIVES_UP = re.compile(r"error: creating server: (.*)$")
_SUM = re.compile(r"failed to load all models")
_SIGNAL = re.compile(r"^Signal \((\d+)\) received")
_VERSION = re.compile(r"^\| server_version +\| ([\w.]+) ")
_STATUS = re.compile(r"^\| (\S+) +\| (\d+|-) +\| (UNAVAILABLE: .*?) *\|$")
_TRACE = "Traceback (most recent call last):"
# vLLM's processes put their name and a log header before each line
_VLLM = re.compile(r"^(?:\([\w ]+pid=\d+\) ?)?(?:(?:ERROR|WARNING|INFO) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] ?)?")
_EXCEPTION = re.compile(r"^((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|NotFound))(?:: (.*))?$")
_ESCAPE = re.compile(r'\\(u[0-9a-fA-F]{4}|["\\/bfnrt])')
STOP_SIGNALS = ("2", "15")
GIVING_UP = "Internal - failed to load all models"
# among the first lines of every start, with a GPU, without one, and in NVIDIA's images
BEGINNING = ("pinned_memory_manager.cc", "cuda_memory_manager.cc")


def plain(message: str) -> str:
    r"""Return a message without JSON's escapes, which Triton writes since 24.06.

    >>> plain("ValueError: bad\\n  second line")
    'ValueError: bad\n  second line'
    """
    return _ESCAPE.sub(lambda match: str(json.loads(f'"{match[0]}"')), message) if "\\" in message else message


class Recogniser:
    """Turns entries and printed lines into happenings.

    Attributes:
        triton: The server's version, once the log has said it.
        began: Whether the log holds the beginning of the present start.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self.triton = ""
        self.began = False
        self._trace = 0  # line at which a printed traceback began, 0: none is open

    @property
    def in_trace(self) -> bool:
        """Whether a printed traceback is under way."""
        return self._trace > 0

    def __call__(self, item: LogLine | Printed) -> Iterator[Happening]:
        """Yield what an item says: mostly nothing or one happening."""
        if isinstance(item, LogLine):
            self._trace = 0
            self.began = self.began or item.file in BEGINNING
            yield from _of_entry(item)
        else:
            yield from self._of_print(item)

    def _of_print(self, item: Printed) -> Iterator[Happening]:
        text = item.text
        if text.startswith("|"):
            yield from self._of_row(item)
            return
        if _TRACE in text:
            self._trace = item.number
            return
        if self._trace and (found := self._end_of_trace(item)):
            yield found
            return
        if match := _GIVES_UP.search(text):
            yield _end(item, match[1])
        elif text.startswith("Signal (") and (match := _SIGNAL.match(text)) and match[1] in STOP_SIGNALS:
            yield Happening("stopped", item.number, None, text.strip())
        elif may_be_known(text) and (known := look_up(text.strip()[:EXCERPT])):
            kind: Kind = "start" if known[0].code in START_CODES else "printed"
            yield Happening(kind, item.number, None, text.strip()[:EXCERPT], "", *known)

    def _of_row(self, item: Printed) -> Iterator[Happening]:
        if match := _VERSION.match(item.text):
            self.triton = match[1]
        elif match := _STATUS.match(item.text):
            # a log without its beginning may have no other word of it
            text = match[3].removeprefix("UNAVAILABLE: ").removeprefix("Internal: ")
            yield with_fault("stub", item.number, None, text, match[1])

    def _end_of_trace(self, item: Printed) -> Happening | None:
        """Return the exception that ends a printed traceback, None while it goes on."""
        text = _VLLM.sub("", item.text, count=1)
        if item.number - self._trace > LONGEST_TRACE:
            self._trace = 0
            return None
        match = _EXCEPTION.match(text)
        if match is None:
            return None
        self._trace = 0
        return with_fault("exception", item.number, None, text[:EXCERPT], "")


START_CODES = frozenset({"S402", "S411", "S413", "S414"})


def _end(item: Printed, words: str) -> Happening:
    if _SUM.search(words) or GIVING_UP.startswith(words.strip()):  # the last line of a log may be cut
        return Happening("gives up", item.number, None, item.text.strip())
    return with_fault("start", item.number, None, f"error: creating server: {words}", "")


def _of_entry(entry: LogLine) -> Iterator[Happening]:
    text = entry.message
    if entry.level == "I" and entry.file not in INFO_FILES:
        return
    for kind, pattern in _STEPS:
        if match := pattern.match(text):
            yield Happening(kind, entry.number, entry.time_s, text, match[1])
            return
    text = plain(text).strip()
    if match := _STUB.match(text):
        yield with_fault("stub", entry.number, entry.time_s, match[1], "")
    elif _LISTENS.match(text):
        yield Happening("listening", entry.number, entry.time_s, text)
    elif entry.level != "I":
        yield from _of_error(entry, text)


INFO_FILES = frozenset({
    "model_lifecycle.cc", "model_repository_manager.cc", "pb_stub.cc", "http_server.cc", "grpc_server.cc",
    "backend_model.cc",
})  # fmt: skip


def _of_error(entry: LogLine, text: str) -> Iterator[Happening]:
    number, time_s = entry.number, entry.time_s
    if _SUM.search(text):
        yield Happening("incomplete", number, time_s, text)
    elif match := _REFUSED.match(text):
        yield with_fault("refused", number, time_s, text, match[1])
    elif match := _FAILED.match(text):
        yield with_fault("failed", number, time_s, text, match[1])
    elif match := _INSTANCE.match(text):
        yield with_fault("stub", number, time_s, match[1], "")
    elif found := DEPENDS.match(text):
        yield Happening("blocked", number, time_s, text[:EXCERPT], found["model"], DEPENDS, found.groupdict())
    elif any(pattern.search(text) for pattern in HARMLESS):
        return
    elif known := look_up(text[:EXCERPT]):
        entry_fault, values = known
        kind: Kind = "printed" if entry_fault.phase == "serve" else "start" if entry_fault.code == "S403" else "blocked"
        if entry.level == "W" and kind != "printed":
            return
        yield Happening(kind, number, time_s, text[:EXCERPT], values.get("model", ""), entry_fault, values)
    elif entry.level in "EF":
        yield Happening("unknown", number, time_s, text[:EXCERPT])


def with_fault(kind: Kind, number: int, time_s: float | None, text: str, model: str) -> Happening:
    """Return a happening with the fault that its words speak of, if they are known."""
    # what a model's process says is what its failed load will say; the catalogue knows that form
    said = f"failed to load '{model}' version 0: Internal: {text}" if kind in ("stub", "exception") else text
    known = look_up(said[:EXCERPT])
    fault, values = known or (None, {})
    if not model and fault and fault.code == NO_FILE:
        model = PurePath(values.get("path", "")).parent.parent.name
    return Happening(kind, number, time_s, text[:EXCERPT], model or values.get("model", ""), fault, values)
