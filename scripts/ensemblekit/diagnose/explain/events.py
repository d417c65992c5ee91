# SPDX-License-Identifier: Apache-2.0
"""From the lines of a log to events: each line that says something, with its kind, its model and its words."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from ensemblekit.faults.catalogue import DEPENDS, ENGINE_STARTS, HARMLESS, OF_ENGINES, look_up, may_be_known, release_of
from ensemblekit.faults.fault import Context, Fault
from ensemblekit.faults.log import (
    FAILED,
    LOADED,
    LOADING,
    REFUSED,
    STUB_NAME,
    UNLOADED,
    UNLOADING,
    LogLine,
    Printed,
    without_controls,
)
from ensemblekit.faults.server import REQUEST_FAILED

__all__ = ["BANNER", "BEGINNING", "KINDS", "EventReader", "LogEvent", "with_fault"]

# what a line can say of a model or the server, and how the timeline calls it
KINDS = {
    "loading": "begins to load",
    "loaded": "is loaded",
    "unloading": "is being unloaded",
    "unloaded": "is unloaded",
    "refused": "its config is refused",
    "failed": "fails to load",
    "blocked": "cannot be used",  # an ensemble, or a dependency, was not accepted
    "stub": "its process reports",  # said again, with the model's name, when the load fails
    "start": "cannot go on",  # the server itself
    "died": "a process of it dies",  # an engine's or a model's, of a server that goes on
    "gives up": "gives up",  # the sum of what was said before
    "incomplete": "goes on without them",  # the same of a server that stays, with --exit-on-error=false
    "listening": "listens",
    "stopped": "is told to stop",
    "printed": "printed",
    "warned": "warns",
    "exception": "an exception was printed",
    "unknown": "an error",
    "said": "an error was printed",  # a program's own line of level ERROR, unknown
}
NO_FILE = "E215"  # names a path: model folder, version folder, file
EXCERPT = 600  # characters of a message that are shown
KEPT = 4000  # characters of a message that are looked at: a traceback through a backend has about 2000
LONGEST_TRACE = 400  # lines of a printed traceback


@dataclass(frozen=True)
class LogEvent:
    """What one line of a log says."""

    kind: str  # one of `KINDS`
    number: int  # the line's number, from 1
    time_s: float | None  # seconds since the log's first entry; None for what is printed without a time
    text: str
    model: str = ""  # the model it is about, empty if none is named
    # the catalogue's record; None for a step that is no fault, or for words that are unknown
    fault: Fault | None = None
    values: dict[str, str] = field(default_factory=dict)  # the names in the words, by the catalogue's fields


_STEPS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("loading", LOADING),
    ("loaded", LOADED),
    ("unloading", UNLOADING),
    ("unloaded", UNLOADED),
)
_INSTANCE = re.compile(r"^(?:ERROR: )?Failed to create instance: (.*)$", re.DOTALL)
_STUB = re.compile(r"^ *Failed to (?:pre)?initialize Python stub[^:]*: (.*)$", re.DOTALL)
_LISTENS = re.compile(r"^Started (HTTPService|GRPCInferenceService) at ")
_GIVES_UP = re.compile(r"error: creating server: (.*)$")
_SUM = re.compile(r"failed to load all models")
_SIGNAL = re.compile(r"^Signal \((\d+)\) received")
_VERSION = re.compile(r"^\| server_version +\| ([\w.]+) ")
_BACKEND = re.compile(r"^\| (\w+) +\| (\S+\.so\S*|<built-in>) +\| (.*?) *\|$")
# a model's row, whole or cut at either end
_STATUS = re.compile(r"(?:\| (\S+) +|^[^|]*)\| (?:\d+|-) +\| (UNAVAILABLE: .*?)(?: \|)?$")
_MORE = re.compile(r"^\| +\| +\| (.*) \|$")  # a row that goes on in the next line of its cell
BANNER = "== Triton Inference Server =="
_TRACE = "Traceback (most recent call last):"
# vLLM's processes put their name and a log header before each line
_VLLM = re.compile(
    r"^(?:\([\w ]+pid=\d+\) ?)?(?:(?:ERROR|WARNING|INFO) \d\d-\d\d \d\d:\d\d:\d\d (?:\[[^\]]+\]|[\w.]+:\d+\]) ?)?"
)
_EXCEPTION = re.compile(r"^((?:[A-Za-z_]\w*\.)*[A-Z]\w*)(?:: (.*))?$")
_SAID = re.compile(r"^(?:\([^)]*\) ?)?(?:\[[\w-]+\] ?)?\[?(?:ERROR|FATAL|CRITICAL)\b")
_ESCAPE = re.compile(r'\\(u[0-9a-fA-F]{4}|["\\/bfnrt])')
STOP_SIGNALS = ("2", "15")
GIVING_UP = "internal - failed to load all models"
# among the first lines of every start, with a GPU, without one, and in NVIDIA's images
BEGINNING = (
    "Pinned memory pool is created",
    "Unable to allocate pinned system memory, pinned memory pool",
    "CUDA memory pool ",
)
# printed by whatever process: its server cannot go on; a model's process (stub) or an engine died
START_CODES = frozenset({"S411", "S413", "S414", "S459", "S466", "C501", "C502", "C503", "C504", "C505"})
OF_A_PROGRAM = frozenset({"S402", "S458"})  # of the server, or of one of its models' processes
DEATH_CODES = frozenset({"S409", "S443", "S465"})
HANGS = frozenset({"S402", "S456", "S457"})  # of a model's process: the server waits for it without limit


def plain(message: str) -> str:
    r"""Return a message without JSON's escapes, which Triton writes since 24.06.

    >>> plain("ValueError: bad\\n  second line")
    'ValueError: bad\n  second line'
    """
    if "\\" not in message:
        return message
    return without_controls(_ESCAPE.sub(lambda match: str(json.loads(f'"{match[0]}"')), message))


class EventReader:
    """Turns entries and printed lines into events, and remembers what may decide between causes.

    Attributes:
        triton: The server's version, once the log has said it.
        began: Whether the log holds the beginning of the present start.
    """

    def __init__(self, findings: frozenset[tuple[str, str]] = frozenset()) -> None:
        """Know nothing yet but what lint found in the repository at hand: models and codes."""
        self.triton, self._findings = "", findings
        self._trace: LogEvent | None = None  # where a printed traceback began
        self._row: LogEvent | None = None  # the status of a model, which may go on in the next row
        self.start_over()

    def start_over(self) -> None:
        """Forget what belongs to one start."""
        self.began = self._loads = False
        self._engines: set[str] = set()
        self._backends: dict[str, str] = {}

    @property
    def in_trace(self) -> bool:
        """Whether a printed traceback is under way."""
        return self._trace is not None

    @property
    def context(self) -> Context:
        """What the log says beside the words of a failure."""
        engines = max(1, len(self._engines)) if self._loads else None
        return Context(engines, self._backends, self._findings, release_of(self.triton))

    def __call__(self, item: LogLine | Printed) -> Iterator[LogEvent]:
        """Yield what an item says: mostly nothing or one event."""
        if isinstance(item, LogLine):
            yield from self.flush()
            self.began = self.began or item.message.startswith(BEGINNING)
            for event in _of_entry(item):
                self._loads = self._loads or event.kind == "loading"
                if event.fault and event.fault.code in OF_ENGINES and event.model:
                    self._engines.add(event.model)
                yield event
        else:
            yield from self._of_print(item)

    def flush(self) -> Iterator[LogEvent]:
        """Yield the row of a table, or the traceback without an end, that is held."""
        row, trace = self._row, self._trace
        self._row = self._trace = None
        if row:
            yield with_fault(row.kind, row.number, None, row.text.strip(), row.model)
        if trace:
            yield trace

    def _of_print(self, item: Printed) -> Iterator[LogEvent]:
        text = item.text
        if text.startswith("|") or "| UNAVAILABLE: " in text:
            yield from self._of_row(item)
            return
        if self._row:
            yield from self.flush()
        if ENGINE_STARTS.search(text):
            self._engines.add(f"line {item.number}")
        if _TRACE in text:
            self._trace = LogEvent("exception", item.number, None, text.strip()[:EXCERPT])
            return
        if self._trace:
            yield from self._in_trace(self._trace, item)
            return
        if match := _GIVES_UP.search(text):
            yield _end(item.number, match[1])
        elif text.startswith("Signal (") and (match := _SIGNAL.match(text)) and match[1] in STOP_SIGNALS:
            yield LogEvent("stopped", item.number, None, text.strip())
        elif may_be_known(text) and (known := look_up(text.strip()[:KEPT])):
            yield LogEvent(_kind_of_print(known[0], text), item.number, None, text.strip()[:EXCERPT], "", *known)
        elif _SAID.match(text):
            yield LogEvent("said", item.number, None, text.strip()[:EXCERPT])

    def _of_row(self, item: Printed) -> Iterator[LogEvent]:
        if match := _VERSION.match(item.text):
            self.triton = match[1]
        elif match := _BACKEND.match(item.text):
            self._backends[match[1]] = f"{match[2]} {match[3]}"
        elif self._row and (match := _MORE.match(item.text)):
            self._row = replace(self._row, text=f"{self._row.text}{match[1]}")
        else:
            yield from self.flush()
            if match := _STATUS.search(item.text):
                # a log without its beginning may have no other word of it
                text = match[2].removeprefix("UNAVAILABLE: ").removeprefix("Internal: ")
                self._row = LogEvent("stub", item.number, None, text, match[1] or "")

    def _in_trace(self, trace: LogEvent, item: Printed) -> Iterator[LogEvent]:
        """Yield the exception that ends a printed traceback, nothing while it goes on."""
        text = _VLLM.sub("", item.text, count=1)
        if match := _GIVES_UP.search(text):
            yield from self.flush()
            yield _end(item.number, match[1])
        elif item.number - trace.number > LONGEST_TRACE:
            yield from self.flush()
        elif _EXCEPTION.match(text):
            self._trace = None
            yield with_fault("exception", item.number, None, text)


def _kind_of_print(fault: Fault, text: str) -> str:
    if fault.code in OF_A_PROGRAM and "tritonserver" in text and STUB_NAME not in text:
        return "start"
    if fault.code in HANGS and (fault.code != "S402" or STUB_NAME in text):
        return "blocked"
    if fault.code in START_CODES:
        return "start"
    return "died" if fault.code in DEATH_CODES else "printed"


def _end(number: int, words: str) -> LogEvent:
    text = f"error: creating server: {words}".strip()
    # the last line of a log may be cut
    if _SUM.search(words) or GIVING_UP.startswith(words.strip().lower()):
        return LogEvent("gives up", number, None, text)
    return with_fault("start", number, None, text)


def _of_entry(entry: LogLine) -> Iterator[LogEvent]:
    text = entry.message
    if entry.level == "I" and entry.file not in INFO_FILES:
        return
    for kind, pattern in _STEPS:
        if match := pattern.match(text):
            yield LogEvent(kind, entry.number, entry.time_s, text, match[1])
            return
    text = plain(text).strip()
    if match := _GIVES_UP.match(text):  # an entry to 20.x, printed since
        yield _end(entry.number, match[1])
    elif match := _STUB.match(text):
        yield with_fault("stub", entry.number, entry.time_s, match[1])
    elif _LISTENS.match(text):
        yield LogEvent("listening", entry.number, entry.time_s, text)
    elif entry.level != "I" or text.startswith(REQUEST_FAILED):  # which a stub writes with level I
        yield from _of_error(entry, text)


# the parts of Triton whose lines of level I say what happens to models and endpoints
INFO_FILES = (
    *("model_lifecycle.cc", "model_repository_manager.cc", "backend_model.cc"),
    *("pb_stub.cc", "http_server.cc", "grpc_server.cc"),
)


def _of_error(entry: LogLine, text: str) -> Iterator[LogEvent]:
    number, time_s = entry.number, entry.time_s
    if _SUM.search(text):
        yield LogEvent("incomplete", number, time_s, text)
    elif match := REFUSED.match(text):
        yield with_fault("refused", number, time_s, text, match[1])
    elif match := FAILED.match(text):
        yield with_fault("failed", number, time_s, text, match[1])
    elif match := _INSTANCE.match(text):
        yield with_fault("stub", number, time_s, match[1])
    elif found := DEPENDS.match(text):
        yield LogEvent("blocked", number, time_s, text[:EXCERPT], found["model"], DEPENDS, found.groupdict())
    elif any(pattern.search(text) for pattern in HARMLESS):
        return
    elif known := look_up(text[:KEPT]):
        fault, values = known
        kind = "printed" if fault.phase == "serve" else "start" if fault.code == "S403" else "blocked"
        if fault.code in DEATH_CODES:
            kind = "died"
        if entry.level == "W":
            if kind != "printed":
                return
            kind = "warned"
        yield LogEvent(kind, number, time_s, text[:EXCERPT], values.get("model", ""), fault, values)
    elif entry.level in "EF":
        yield LogEvent("unknown", number, time_s, text[:EXCERPT])


def with_fault(kind: str, number: int, time_s: float | None, text: str, model: str = "") -> LogEvent:
    """Return an event with the fault that its words speak of, if they are known."""
    # what a model's process says is what its failed load will say; the catalogue knows that form
    said = f"failed to load '{model}' version 0: Internal: {text}" if kind in ("stub", "exception") else text
    known = look_up(said[:KEPT])
    fault, values = known or (None, {})
    if not model and fault and fault.code == NO_FILE:
        model = PurePath(values.get("path", "")).parent.parent.name
    return LogEvent(kind, number, time_s, text[:EXCERPT], model or values.get("model", ""), fault, values)
