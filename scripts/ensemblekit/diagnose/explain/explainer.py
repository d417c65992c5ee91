# SPDX-License-Identifier: Apache-2.0
"""`explain_lines`: the whole of explain as one function over the lines of a log, in bounded memory."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ensemblekit.diagnose.explain.diagnosis import Cause, Explanation, TimelineRow, Unknown, diagnose
from ensemblekit.diagnose.explain.events import BANNER, BEGINNING, EventReader, LogEvent
from ensemblekit.diagnose.explain.source import LineCleaner, lines_of, open_log
from ensemblekit.faults.catalogue import may_be_known
from ensemblekit.faults.log import EntryReader, LogLine, Printed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Explainer", "explain_lines", "explain_log", "plot_explanation"]

KEPT_FIRST, KEPT_LAST = 600, 400  # happenings of one start; a server of a hundred models has about 400
KEPT_UNKNOWN, KEPT_EARLIER = 40, 10
# A complete entry of level I from a part of Triton that says nothing of loads and starts: most lines of a verbose log.
_IDLE_ENTRY = re.compile(
    r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ (?!model_lifecycle|model_repository|pb_stub|backend_model|pinned_|cuda_mem"
    r"|\w+_server\.cc:\d+\] \"?Started)[\w.]+:\d+\] (?:\".*\"|[^\"].*)\r?\Z"
)
FIRST_STEPS = ("loading: ", "Poll failed for model directory ")  # no line after a server's end begins so
STEPS = ("loading", "loaded", "refused", "failed", "gives up", "incomplete", "listening")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]+")
BLUE, GREEN, AMBER, RED, GREY = "#3b7dd8", "#76b900", "#f2a33a", "#c8323d", "#5f6671"  # as in lesson/plots.py
WIDTH_IN, ROW_IN, FRAME_IN = 9.0, 0.42, 1.3
MARK = {"cause": (RED, "X"), "consequence": (GREY, "o"), "unknown": (AMBER, "s")}
NARROW = 0.012  # of the whole time a letter takes; a bar that is narrower than its word has none


class Explainer:
    """Takes a log line by line and can say at any time what it holds so far."""

    def __init__(self, findings: frozenset[tuple[str, str]] = frozenset()) -> None:
        """Begin with an empty log, and with what lint found in the repository at hand: models and codes."""
        self._clean, self._entries_of, self._read = LineCleaner(), EntryReader(), EventReader(findings)
        self._lines = self._entries = self._left_out = 0
        self._starts, self._ended, self._stepped = 1, False, False
        self._seen: list[LogEvent] = []
        self._unknown: dict[str, Unknown] = {}
        self._said: dict[str, Unknown] = {}
        self._earlier: dict[tuple[str, str], Cause] = {}

    def feed(self, raw: str) -> list[LogEvent]:
        """Take the next line of the log and return what it says, mostly nothing."""
        self._lines += 1
        if "&" not in raw and not self._clean.begun and self._idle(raw):
            return []
        new = list[LogEvent]()
        for line in self._clean(raw):
            if line == raw or not self._idle(line):
                new += self._take(self._entries_of.push(line, self._lines))
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
    if "|" in raw or "] " in raw or "\x1b" in raw or "Traceback" in raw or raw.startswith("{") or "ERROR" in raw:
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


def plot_explanation(found: Explanation) -> "Figure":
    """Draw what a log says: bars while a model loads and is loaded, a cross at each root cause."""
    from matplotlib.figure import Figure  # a second to import, and only lessons draw

    names = list(dict.fromkeys(each.who for each in found.moments)) or ["server"]
    end_s = max((each.time_s or 0.0 for each in found.moments), default=0.0) or 1.0
    figure = Figure(figsize=(WIDTH_IN, FRAME_IN + ROW_IN * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for row, name in enumerate(names):
        _draw_row(axes, row, [each for each in found.moments if each.who == name], end_s)
    for cause in found.causes:
        row = names.index(cause.model or "server") if (cause.model or "server") in names else 0
        axes.annotate(
            cause.title, (cause.time_s or 0.0, row), (12, 0), textcoords="offset points", va="center", color=RED
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.8)
    axes.set_xlim(-0.015 * end_s, end_s * 1.02)
    axes.set_xlabel("seconds since the log's first entry")
    axes.set_title(found.headline[:1].upper() + found.headline[1:], loc="left", fontsize=11, fontweight="bold")
    return figure


def _draw_row(axes: "Axes", row: int, rows: list[TimelineRow], end_s: float) -> None:
    begins, loaded, gone = (_first(rows, what) for what in ("begins to load", "is loaded", "is unloaded"))
    if begins is not None:
        failed = next((each.time_s for each in rows if each.role == "cause"), None)
        stop = next((time for time in (loaded, failed, end_s) if time is not None), end_s)
        _bar(axes, row, begins, stop, end_s, BLUE, "loading")
    if loaded is not None:
        text = "ready" if gone is None else "loaded, then unloaded"
        _bar(axes, row, loaded, end_s if gone is None else gone, end_s, GREEN if gone is None else AMBER, text)
    last = 0.0
    for each in rows:
        last = each.time_s if each.time_s is not None else end_s if each.role == "consequence" else last
        if each.role in MARK and not each.what.startswith("is unload"):
            colour, marker = MARK[each.role]
            axes.plot(last, row, marker, color=colour, markersize=11 if each.role == "cause" else 8, clip_on=False)


def _first(rows: list[TimelineRow], what: str) -> float | None:
    return next((each.time_s for each in rows if each.what == what), None)


def _bar(axes: "Axes", row: int, begin_s: float, stop_s: float, end_s: float, colour: str, text: str) -> None:
    axes.barh(row, stop_s - begin_s, left=begin_s, height=0.5, color=colour)
    if stop_s - begin_s > NARROW * len(text) * end_s:
        axes.text((begin_s + stop_s) / 2, row, text, ha="center", va="center", color="black", fontsize=8)
