# SPDX-License-Identifier: Apache-2.0
"""What a log says, as values and as text: the root cause first, then what followed from it, then the timeline."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Cause", "Explanation", "Moment", "State", "Unknown"]

State = Literal["ready", "incomplete", "gave up", "stopped", "crashed", "no end", "not a log"]
STATE_TEXT: dict[State, str] = {
    "ready": "the server became ready",
    "incomplete": "the server runs without some of its models",
    "gave up": "the server gave up",
    "stopped": "the server was stopped from outside",
    "crashed": "the server's process ended",
    "no end": "the log ends while the server was still loading, or was cut there",
    "not a log": "this is no log of Triton: no line of it is an entry",
}
ROLE_MARK = {"cause": "<- the cause", "consequence": "(a consequence)", "unknown": "(not understood)", "step": ""}
HIDDEN = "HTTP 500 \"failed to load '{model}', failed to poll from model repository\", without the reason above"
TIMELINE_ROWS = 60  # what a reader can take in; the middle is left out


@dataclass(frozen=True)
class Cause:
    """A root cause.

    Attributes:
        code: The catalogue's code; empty if the words are unknown.
        title: A few words.
        model: The model it is about, empty for the server.
        says: The server's words.
        line: Their line in the log, from 1.
        time_s: Seconds since the log's first entry, None if they stand in a line without a time.
        why: Why, in plain words; empty if unknown.
        fix: What to do; empty if unknown.
        link: Upstream's issue, documentation or source.
        api: What the load API says instead, if it hides the reason.
        note: How sure this is, where it is not plain.
    """

    code: str
    title: str
    model: str
    says: str
    line: int
    time_s: float | None
    why: str
    fix: str
    link: str
    api: str = ""
    note: str = ""

    @property
    def known(self) -> bool:
        """Whether the catalogue knows these words."""
        return bool(self.code)

    def __str__(self) -> str:
        about = f"{self.model}: " if self.model else ""
        head = f"CAUSE {self.code}: {about}{self.title}" if self.known else f"CAUSE UNKNOWN: {about}{self.title}"
        rows = [head, f"  line {self.line}: {_indented(self.says)}"]
        rows += [f"  {name}: {text}" for name, text in (("why", self.why), ("fix", self.fix)) if text]
        rows += [f"  the load API says only: {self.api}"] if self.api else []
        rows += [f"  note: {self.note}"] if self.note else []
        return "\n".join([*rows, f"  see {self.link}"] if self.link else rows)


@dataclass(frozen=True)
class Moment:
    """One row of the timeline."""

    line: int
    time_s: float | None
    who: str
    what: str
    role: Literal["step", "cause", "consequence", "unknown"]

    def __str__(self) -> str:
        when = f"{self.time_s:9.3f} s" if self.time_s is not None else " " * 11
        return f"{when}  {self.who:<16} {self.what} {ROLE_MARK[self.role]}".rstrip()


@dataclass(frozen=True)
class Unknown:
    """An error line that the catalogue does not know, and how often it came (numbers in it apart)."""

    line: int
    text: str
    count: int


@dataclass(frozen=True)
class Explanation:
    """All that a log says.

    Attributes:
        state: How the last start in the log ended.
        causes: The root causes, in the order in which they happened.
        earlier: Causes of earlier starts in the same log that the last one does not have.
        moments: What happened, in order.
        left_out: How many moments are not kept.
        unknown: Error lines that are not understood.
        notices: Faults that were mentioned and stopped nothing.
        triton: The server's version, empty if the log does not say it.
        starts: How many starts the log holds.
        lines: How many lines were read.
        entries: How many of them are Triton's.
    """

    state: State
    causes: tuple[Cause, ...]
    earlier: tuple[Cause, ...]
    moments: tuple[Moment, ...]
    left_out: int
    unknown: tuple[Unknown, ...]
    notices: tuple[Cause, ...]
    triton: str
    starts: int
    lines: int
    entries: int

    @property
    def consequences(self) -> tuple[Moment, ...]:
        """What only followed from a cause."""
        return tuple(moment for moment in self.moments if moment.role == "consequence")

    @property
    def headline(self) -> str:
        """The whole in one sentence."""
        if self.causes:
            first = self.causes[0]
            about = f"{first.model}: " if first.model else ""
            more = f", and {len(self.causes) - 1} more" if len(self.causes) > 1 else ""
            return f"{STATE_TEXT[self.state]}; {about}{first.title}{more}"
        if self.state == "gave up":
            why = "its words are not in the catalogue" if self.unknown else "the beginning of the log is missing"
            return f"the server gave up; the cause is not known from this log: {why}"
        if self.state == "ready":
            return "the server became ready; nothing failed" + (" but see below" if self.unknown else "")
        return STATE_TEXT[self.state] + ("; no failure in it" if self.state != "not a log" else "")

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, 1 if something did, 2 if it is no log."""
        failed = bool(self.causes) or self.state in ("incomplete", "gave up", "crashed")
        return 2 if self.state == "not a log" else int(failed)

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation for JSON."""
        return {"headline": self.headline, "exit_code": self.exit_code} | asdict(self)

    def __str__(self) -> str:
        size = f"{self.lines} lines, {self.entries} of them entries"
        facts = [f"Triton {self.triton}" if self.triton else "", size]
        facts += [f"{self.starts} starts, the last one is explained"] if self.starts > 1 else []
        rows = [self.headline[:1].upper() + self.headline[1:] + ".", f"({', '.join(filter(None, facts))})"]
        if self.state == "not a log":
            rows.append("Hint: give what tritonserver wrote to its standard error, or `docker logs CONTAINER 2>&1`.")
        for cause in self.causes:
            rows += ["", str(cause)]
        for cause in self.earlier:
            rows += ["", f"In an earlier start of this log: {cause}"]
        if self.moments:
            rows += ["", "What happened, in seconds since the first entry:", *self._timeline()]
        for notice in self.notices:
            rows += ["", str(notice).replace("CAUSE", "ALSO MENTIONED", 1)]
        if self.unknown:
            rows += ["", "Error lines that this catalogue does not know (no guess is made):"]
            rows += [_unknown_row(each) for each in self.unknown]
        return "\n".join(rows)

    __repr__ = __str__

    def _timeline(self) -> list[str]:
        rows = [f"  {moment}" for moment in self.moments]
        missing = self.left_out
        if len(rows) > TIMELINE_ROWS:
            half = TIMELINE_ROWS // 2
            missing += len(rows) - 2 * half
            rows = [*rows[:half], f"  ... {missing} more ...", *rows[-half:]]
        elif missing:
            rows.append(f"  ... {missing} more ...")
        return rows


def _unknown_row(unknown: Unknown) -> str:
    times = f" ({unknown.count} times)" if unknown.count > 1 else ""
    return f"  line {unknown.line}{times}: {_indented(unknown.text)}"


def _indented(text: str) -> str:
    return text.replace("\n", "\n      ")
