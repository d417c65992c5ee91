# SPDX-License-Identifier: Apache-2.0
"""`explain_lines`: the whole of explain as one function over the lines of a log, in bounded memory."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ensemblekit.diagnose.explain.diagnosis import Cause, Explanation, Unknown, diagnose
from ensemblekit.diagnose.explain.events import BANNER, BEGINNING, EventReader, LogEvent
from ensemblekit.diagnose.explain.source import LineCleaner, lines_of, open_log
from ensemblekit.faults.catalogue import may_be_known
from ensemblekit.faults.log import EntryReader, LogLine, Printed

__all__ = ["Explainer", "explain_lines", "explain_log"]

KEPT_FIRST, KEPT_LAST = 600, 400  # happenings of one start; a server of a hundred models has about 400
KEPT_UNKNOWN, KEPT_EARLIER = 40, 10
FIRST_LINES = 100  # that wait for an entry: a banner has 20, a table 30
# A complete entry of level I from a part of Triton that says nothing of loads and starts: most lines of a verbose log.
_IDLE_ENTRY = re.compile(
    r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ (?!model_lifecycle|model_repository|pb_stub|backend_model|pinned_|cuda_mem"
    r"|\w+_server\.cc:\d+\] \"?Started)[\w.]+:\d+\] (?:\".*\"|[^\"].*)\r?\Z"
)
FIRST_STEPS = ("loading: ", "Poll failed for model directory ")  # no line after a server's end begins so
STEPS = ("loading", "loaded", "refused", "failed", "gives up", "incomplete", "listening")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]+")


class Explainer:
    """Takes a log line by line and can say at any time what it holds so far."""

    def __init__(self, findings: frozenset[tuple[str, str]] = frozenset()) -> None:
        """Begin with an empty log, and with what lint found in the repository at hand: models and codes."""
        self._clean, self._entries_of, self._read = LineCleaner(), EntryReader(), EventReader(findings)
        self._lines = self._entries = self._left_out = 0
        self._waiting: list[str] | None = []
        self._starts, self._ended, self._stepped = 1, False, False
        self._seen: list[LogEvent] = []
        self._unknown: dict[str, Unknown] = {}
        self._said: dict[str, Unknown] = {}
        self._earlier: dict[tuple[str, str], Cause] = {}

    def feed(self, raw: str) -> list[LogEvent]:
        """Take the next line of the log and return what it says, mostly nothing.

        The first lines wait for an entry, which shows in which form the log was kept.
        """
        self._lines += 1
        if self._waiting is None:
            return self._feed(raw, self._lines)
        self._waiting.append(raw)
        known = self._clean.holds_entry(raw) and self._clean.learn(self._waiting)
        return self._end_waiting() if known or len(self._waiting) == FIRST_LINES else []

    def _end_waiting(self) -> list[LogEvent]:
        waiting, self._waiting = self._waiting or [], None
        return [each for number, raw in enumerate(waiting, 1) for each in self._feed(raw, number)]

    def _feed(self, raw: str, number: int) -> list[LogEvent]:
        if "&" not in raw and not self._clean.begun and self._idle(raw):
            return []
        new = list[LogEvent]()
        for line in self._clean(raw):
            if line == raw or not self._idle(line):
                new += self._take(self._entries_of.push(line, number))
        return new

    def _idle(self, line: str) -> bool:
        """Return whether a line can be passed over, and count it."""
        if self._entries_of.holds or self._read.in_trace or not _says_nothing(line):
            return False
        self._entries += line.startswith("I")
        return True

    def _take(self, items: Iterable[LogLine | Printed]) -> list[LogEvent]:
        new = list[LogEvent]()
        for item in items:
            self._entries += isinstance(item, LogLine)
            if self._is_beginning(item):
                self._begin_again()
            events = list(self._read(item))
            for each in events:
                self._keep(each)
            new += events
        return new

    def _is_beginning(self, item: LogLine | Printed) -> bool:
        """Return whether a new start begins with this: a start's own line, not any line after the end of another."""
        if isinstance(item, Printed):
            return BANNER in item.text and (self._ended or self._stepped)
        if item.message.startswith(BEGINNING):
            return self._ended or self._stepped
        return self._ended and item.message.startswith(FIRST_STEPS)

    def _begin_again(self) -> None:
        """Close a start: what follows is of the next one."""
        found = self._diagnosis()
        for cause in found.causes or ([found.summary] if found.exit_code else []):
            if len(self._earlier) < KEPT_EARLIER:
                self._earlier.setdefault((cause.code, cause.model or cause.says), cause)
        self._seen, self._unknown, self._said, self._left_out = [], {}, {}, 0
        self._starts, self._ended, self._stepped = self._starts + 1, False, False
        self._read.start_over()

    def _keep(self, each: LogEvent) -> None:
        if each.kind in ("unknown", "said"):
            _count(self._unknown if each.kind == "unknown" else self._said, each)
            return
        # an error of requests may come without end
        if each.kind in ("printed", "exception", "died") and self._known_already(each):
            self._left_out += 1
            return
        self._seen.append(each)
        if len(self._seen) > KEPT_FIRST + KEPT_LAST:
            del self._seen[KEPT_FIRST]
            self._left_out += 1
        self._ended = self._ended or (each.time_s is None and each.kind in ("gives up", "start"))
        self._stepped = self._stepped or each.kind in STEPS

    def _known_already(self, each: LogEvent) -> bool:
        recent = self._seen[-8:]
        return any(old.kind == each.kind and old.fault is each.fault and old.text == each.text for old in recent)

    def _diagnosis(self) -> Explanation:
        found = diagnose(self._seen, list(self._unknown.values()), context=self._read.context, whole=self._read.began)
        # what a program called an error, where nothing better is known
        return found if found.causes else replace(found, unknown=(*found.unknown, *self._said.values()))

    def result(self) -> Explanation:
        """Return the explanation of all that was fed."""
        self._end_waiting()
        self._take(self._entries_of.flush())
        for each in self._read.flush():
            self._keep(each)
        found = self._diagnosis()
        known = {(cause.code, cause.model or cause.says) for cause in found.causes}
        is_log = self._entries or any(each.kind != "exception" for each in self._seen)
        return replace(
            found,
            state=found.state if is_log else "not a log",
            earlier=tuple(cause for key, cause in self._earlier.items() if key not in known),
            left_out=self._left_out,
            triton=self._read.triton,
            starts=self._starts,
            lines=self._lines,
            entries=self._entries,
        )


def _count(into: dict[str, Unknown], each: LogEvent) -> None:
    key = _NUMBER.sub("#", each.text)
    if old := into.get(key):
        into[key] = replace(old, count=old.count + 1)
    elif len(into) < KEPT_UNKNOWN:
        into[key] = Unknown(each.number, each.text, 1)


def _says_nothing(raw: str) -> bool:
    """Return whether a line can be passed over; quick, since a log may have millions of them."""
    if raw.startswith("I"):
        return _IDLE_ENTRY.match(raw) is not None
    # a row of a table, an entry, an escape: not printed by a model, or not to be judged unread
    if (
        "|" in raw
        or "] " in raw
        or raw.endswith("]")
        or "\x1b" in raw
        or "Traceback" in raw
        or raw.startswith("{")
        or "ERROR" in raw
    ):
        return False
    return not may_be_known(raw)


def explain_lines(lines: Iterable[str], findings: frozenset[tuple[str, str]] = frozenset()) -> Explanation:
    """Return what the lines of a log say; colours and container prefixes are taken off.

    Args:
        lines: The log's lines, whole or cut at either end.
        findings: Models and codes that lint found in the server's repository; they decide between causes.
    """
    explainer = Explainer(findings)
    for line in lines:
        explainer.feed(line)
    return explainer.result()


def explain_log(path: Path, findings: frozenset[tuple[str, str]] = frozenset()) -> Explanation:
    """Return what a log says.

    Args:
        path: The log.
        findings: As of `explain_lines`.

    Raises:
        ParameterError: It cannot be read.
    """
    with open_log(path) as file:
        return explain_lines(lines_of(file), findings)
