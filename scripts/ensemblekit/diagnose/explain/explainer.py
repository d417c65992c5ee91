# SPDX-License-Identifier: Apache-2.0
"""`explain_lines`: the whole of explain as one function over the lines of a log, in bounded memory."""

import re
from collections.abc import Iterable
from pathlib import Path

from ensemblekit.diagnose.explain.diagnosis import Diagnosis, diagnose
from ensemblekit.diagnose.explain.events import Happening, Recogniser
from ensemblekit.diagnose.explain.explanation import Cause, Explanation, Unknown
from ensemblekit.diagnose.explain.source import Stripper, lines_of, open_log
from ensemblekit.faults.catalogue import may_be_known
from ensemblekit.faults.log import EntryReader, LogLine, Printed

__all__ = ["Explainer", "explain_lines", "explain_log"]

KEPT_FIRST, KEPT_LAST = 600, 400  # happenings of one start; a server of a hundred models has about 400
KEPT_UNKNOWN, KEPT_EARLIER = 40, 10
# A complete entry of level I from a part of Triton that says nothing of loads and starts: most lines of a verbose log.
_IDLE_ENTRY = re.compile(
    r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ (?!model_lifecycle|model_repository|pb_stub|backend_model|pinned_|cuda_mem"
    r"|\w+_server\.cc:\d+\] \"?Started)[\w.]+:\d+\] (?:\".*\"|[^\"].*)\r?\Z"
)
_NUMBER = re.compile(r"\d+|0x[0-9a-f]+")


class Explainer:
    """Takes a log line by line and can say at any time what it holds so far."""

    def __init__(self) -> None:
        """Begin with an empty log."""
        self._strip, self._reader, self._recognise = Stripper(), EntryReader(), Recogniser()
        self._lines = self._entries = self._left_out = 0
        self._starts, self._ended = 1, False
        self._seen: list[Happening] = []
        self._unknown: dict[str, Unknown] = {}
        self._earlier: dict[tuple[str, str], Cause] = {}

    def feed(self, raw: str) -> list[Happening]:
        """Take the next line of the log and return what it says, mostly nothing."""
        self._lines += 1
        if self._idle(raw):
            return []
        line = self._strip(raw)
        return [] if line != raw and self._idle(line) else self._take(self._reader.push(line, self._lines))

    def _idle(self, line: str) -> bool:
        """Return whether a line can be passed over, and count it."""
        if self._reader.holds or self._recognise.in_trace or not _says_nothing(line):
            return False
        self._entries += line.startswith("I")
        return True

    def _take(self, items: Iterable[LogLine | Printed]) -> list[Happening]:
        new = list[Happening]()
        for item in items:
            if isinstance(item, LogLine):
                self._entries += 1
                if self._ended:
                    self._begin_again()
            new += self._recognise(item)
        for each in new:
            self._keep(each)
        return new

    def _begin_again(self) -> None:
        """Close a start that gave up: what follows is of the next one."""
        for cause in self._diagnosis().causes:
            if len(self._earlier) < KEPT_EARLIER:
                self._earlier.setdefault((cause.code, cause.model or cause.says), cause)
        self._seen, self._unknown, self._left_out = [], {}, 0
        self._starts, self._ended, self._recognise.began = self._starts + 1, False, False

    def _keep(self, each: Happening) -> None:
        if each.kind == "unknown":
            key = _NUMBER.sub("#", each.text)
            old = self._unknown.get(key)
            if old:
                self._unknown[key] = Unknown(old.line, old.text, old.count + 1)
            elif len(self._unknown) < KEPT_UNKNOWN:
                self._unknown[key] = Unknown(each.number, each.text, 1)
            return
        # an error of requests may come without end
        if each.kind in ("printed", "exception") and self._known_already(each):
            self._left_out += 1
            return
        self._seen.append(each)
        if len(self._seen) > KEPT_FIRST + KEPT_LAST:
            del self._seen[KEPT_FIRST]
            self._left_out += 1
        self._ended = self._ended or (each.kind == "gives up" and each.time_s is None) or each.kind == "start"

    def _known_already(self, each: Happening) -> bool:
        recent = self._seen[-8:]
        return any(old.kind == each.kind and old.fault is each.fault and old.text == each.text for old in recent)

    def _diagnosis(self) -> Diagnosis:
        return diagnose(self._seen, list(self._unknown.values()), whole=self._recognise.began)

    def result(self) -> Explanation:
        """Return the explanation of all that was fed."""
        self._take(self._reader.flush())
        found = self._diagnosis()
        known = {(cause.code, cause.model or cause.says) for cause in found.causes}
        state = found.state if self._entries or self._seen else "not a log"
        return Explanation(
            state=state,
            causes=found.causes,
            earlier=tuple(cause for key, cause in self._earlier.items() if key not in known),
            moments=found.moments,
            left_out=self._left_out,
            unknown=found.unknown,
            notices=found.notices,
            triton=self._recognise.triton,
            starts=self._starts,
            lines=self._lines,
            entries=self._entries,
        )


def _says_nothing(raw: str) -> bool:
    """Return whether a line can be passed over; quick, since a log may have millions of them."""
    if raw.startswith("I"):
        return _IDLE_ENTRY.match(raw) is not None
    # a row of a table, an entry, an escape: not printed by a model, or not to be judged unread
    if "|" in raw or "] " in raw or "\x1b" in raw or "Traceback" in raw or raw.startswith("{"):
        return False
    return not may_be_known(raw)


def explain_lines(lines: Iterable[str]) -> Explanation:
    """Return what the lines of a log say; colours and container prefixes are taken off.

    Args:
        lines: The log's lines, whole or cut at either end.
    """
    explainer = Explainer()
    for line in lines:
        explainer.feed(line)
    return explainer.result()


def explain_log(path: Path) -> Explanation:
    """Return what a log says.

    Raises:
        ParameterError: It cannot be read.
    """
    with open_log(path) as file:
        return explain_lines(lines_of(file))
