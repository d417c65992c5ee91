# SPDX-License-Identifier: Apache-2.0
"""From events to why: which failures are root causes, which only follow from another one, and all of it as text."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ensemblekit.diagnose.explain.events import KINDS, LogEvent, with_fault
from ensemblekit.faults.catalogue import DEPENDS, release_of, resolve
from ensemblekit.faults.engine import POINTS_BACK
from ensemblekit.faults.fault import NO_CONTEXT, Context
from ensemblekit.releases import documented_note

__all__ = ["Cause", "Explanation", "State", "TimelineRow", "Unknown", "diagnose", "timeline_row"]

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
FAILURES = ("refused", "failed", "blocked", "stub", "start", "died")
ABSENT, NOT_THERE = "E201", "S426"
DIED, GIVEN_UP, CRASHED, LOST_LOCK = "S409", "S465", "S411", "S466"
CRASHES = ("S411", "S414", "S466")
PARSE = ("E116", "E117")
BEFORE = 6  # lines between a parser's complaint and the refusal of the config that it is about
_QUOTED = re.compile(
    r"Model '(?P<model>[^']+)' loading failed with error: (?:version -?\d+ is at \w+ state: )?(.+)", re.S
)
SHORT = 110  # characters of the server's words in a row of the timeline


@dataclass(frozen=True)
class Cause:
    """A root cause."""

    code: str  # the catalogue's code; empty if the words are unknown
    title: str
    model: str  # the model it is about, empty for the server
    says: str
    line: int  # the line of these words in the log, from 1
    time_s: float | None  # seconds since the log's first entry, None if they stand in a line without a time
    why: str = ""  # why, in plain words; empty if unknown
    fix: str = ""  # what to do; empty if unknown
    link: str = ""  # upstream's issue, documentation or source
    api: str = ""  # what the load API says instead, if it hides the reason
    note: str = ""  # how sure this is, where it is not plain
    severity: str = "error"  # `warning` if the server only warns of it

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
class TimelineRow:
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
    """All that a log says; `diagnose` makes it of one start, the explainer adds what is true of the whole log.

    Attributes:
        state: How the last start in the log ended.
        causes: The root causes, in the order in which they happened.
        earlier: Causes of earlier starts in the same log that the last one does not have.
        moments: The rows of the timeline, in order.
        left_out: How many rows are not kept.
        unknown: Error lines that are not understood.
        notices: Faults that were mentioned and stopped nothing.
        triton: The server's version, empty if the log does not say it.
        starts: How many starts the log holds.
        lines: How many lines were read.
        entries: How many of them are Triton's.
        whole: Whether the beginning of the last start is in the log.
    """

    state: State
    causes: tuple[Cause, ...]
    moments: tuple[TimelineRow, ...]
    unknown: tuple[Unknown, ...]
    notices: tuple[Cause, ...]
    whole: bool
    earlier: tuple[Cause, ...] = ()
    left_out: int = 0
    triton: str = ""
    starts: int = 1
    lines: int = 0
    entries: int = 0

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against "nothing failed", in a few words each, where no cause was found."""
        about = [notice.title for notice in self.notices if notice.severity == "error"]
        if self.unknown:
            lines = sum(each.count for each in self.unknown)
            about.append(f"{lines} error line{'s' if lines > 1 else ''} not in the catalogue")
        about += [f"an earlier start failed: {cause.title}" for cause in self.earlier]
        return tuple(dict.fromkeys(about))

    @property
    def headline(self) -> str:
        """The whole in one sentence."""
        if self.causes:
            first = self.causes[0]
            about = f"{first.model}: " if first.model else ""
            more = f", and {len(self.causes) - 1} more" if len(self.causes) > 1 else ""
            return f"{STATE_TEXT[self.state]}; {about}{first.title}{more}"
        if self.state == "gave up":
            why = "the log does not say why" if self.whole else "the beginning of the log is missing"
            why = "its words are not in the catalogue" if self.unknown else why
            return f"the server gave up; the cause is not known from this log: {why}"
        if self.doubts:
            return f"{STATE_TEXT[self.state]}; {'; '.join(self.doubts[:2])}"
        if self.state in ("ready", "stopped") and not self.whole:
            return f"{STATE_TEXT[self.state]}; no failure in this part of the log, its beginning is missing"
        ends = {"ready": "; nothing failed", "no end": "; no failure in it", "stopped": "; no failure in it"}
        return STATE_TEXT[self.state] + ends.get(self.state, "")

    @property
    def summary(self) -> Cause:
        """A start that failed without a known cause, in one."""
        lines = [(each.line, each.text) for each in self.unknown] or [(row.line, row.what) for row in self.moments]
        line, text = lines[0] if lines else (0, "")
        return Cause("", self.headline, "", text, line, None)

    @property
    def exit_code(self) -> int:
        """0 if nothing in the log speaks of a failure, 1 if something does, 2 if it is no log."""
        if self.state == "not a log":
            return 2
        return int(bool(self.causes or self.doubts) or self.state in ("incomplete", "gave up", "crashed"))

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation for JSON."""
        return {"headline": self.headline, "exit_code": self.exit_code} | asdict(self)

    def __str__(self) -> str:
        size = f"{self.lines} lines, {self.entries} of them entries"
        facts = [f"Triton {self.triton}" if self.triton else "", size]
        facts += [f"{self.starts} starts, the last one is explained"] if self.starts > 1 else []
        rows = [self.headline[:1].upper() + self.headline[1:] + ".", f"({', '.join(filter(None, facts))})"]
        rows += [f"({note})"] if (note := documented_note(release_of(self.triton))) else []
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
        rows = [f"  {row}" for row in self.moments]
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


def diagnose(
    seen: Sequence[LogEvent], unknown: Sequence[Unknown] = (), *, context: Context = NO_CONTEXT, whole: bool = True
) -> Explanation:
    """Return which of the events of one start are causes, which consequences, and how it ended.

    Args:
        seen: What happened, in order.
        unknown: The error lines whose words are not known.
        context: What may decide between causes with the same words.
        whole: Whether the beginning of the start is there, where refused configs are named.
    """
    seen = _told_apart(seen)
    # without any failure that it follows from, a consequence is all that there is
    found = _roots(seen) or [each for each in seen if each.kind in FAILURES and each.kind != "died"]
    roots, healed = _healed(found, seen)
    causes = [_half_seen(each) if _is_half(each, whole=whole) else _cause(each, context) for each in roots]
    mentioned = [each for each in seen if each.kind in ("printed", "warned", "died") and each not in roots]
    if not roots:  # of a start that failed they are the same again
        mentioned += [each for each in seen if each.kind == "exception" and each.fault]
    notices = _unique([_cause(each, context) for each in (*healed, *mentioned)])
    notices = [each for each in notices if each.code not in {cause.code for cause in causes}]
    state = _state(seen)
    # what has no words of the catalogue and no cause that explains it
    raw = [each for each in seen if not each.fault and each.kind in ("exception", "incomplete") and not roots]
    return Explanation(
        state=state,
        causes=tuple(_unique(causes)),
        moments=tuple(timeline_row(each, _role(each, roots, state, seen)) for each in seen if each.kind != "unknown"),
        unknown=(*unknown, *(Unknown(each.number, each.text, 1) for each in raw)),
        notices=tuple(notices),
        whole=whole,
    )


def _told_apart(seen: Sequence[LogEvent]) -> list[LogEvent]:
    """Return what happened without what is said twice: by a process first, then with the model's name."""
    failed = [each.text for each in seen if each.kind in ("failed", "blocked")]
    kept = list[LogEvent]()
    for each in seen:
        if each.kind == "stub":
            first_line = each.text.splitlines()[0] if each.text else ""
            if any(first_line in text for text in failed) or any(first_line in old.text for old in kept):
                continue
        kept.append(_with_parser(each, kept) if each.fault and each.fault.code in PARSE else each)
    return [each for at, each in enumerate(kept) if not _is_parser_of_next(each, kept[at + 1 :])]


def _with_parser(refused: LogEvent, before: Sequence[LogEvent]) -> LogEvent:
    """Return the refusal of a config with the parser's reason, which stands in the lines before it."""
    if refused.kind != "refused":
        return refused
    near = (each for each in reversed(before) if refused.number - each.number <= BEFORE)
    parser = next((each for each in near if each.kind == "printed" and each.fault and each.fault.code in PARSE), None)
    if parser is None:
        return refused
    text = f"{refused.text}\n{parser.text[parser.text.find('Error parsing') :]}"
    return replace(refused, text=text, fault=parser.fault, values=refused.values | parser.values)


def _is_parser_of_next(each: LogEvent, following: Sequence[LogEvent]) -> bool:
    if each.kind != "printed" or not each.fault or each.fault.code not in PARSE:
        return False
    return any(other.kind == "refused" and other.number - each.number <= BEFORE for other in following)


def _roots(seen: Sequence[LogEvent]) -> list[LogEvent]:
    """Return the failures that follow from no other failure."""
    broken = {each.model for each in seen if each.kind in ("refused", "failed", "stub") and each.model}
    # what an ensemble lacks is told as that ensemble's failure
    told = broken.union(*(_missing(each) for each in seen if _has(each, ABSENT)))
    given_up = {each.values.get("model"): each for each in seen if _has(each, GIVEN_UP)}
    lost = [each.number for each in seen if _has(each, LOST_LOCK)]
    roots = list[LogEvent]()
    for each in seen:
        if each.kind not in FAILURES or (each.kind == "died" and _is_told_by_load(each, seen)):
            continue
        if _has(each, CRASHED) and any(0 < each.number - number <= BEFORE for number in lost):  # the same end
            continue
        if _has(each, DIED) and (reason := given_up.get(each.model)):  # not by itself
            each = replace(each, fault=reason.fault, values=reason.values)
        if each.fault is DEPENDS:
            quoted = _quoted(each)
            if quoted and quoted.model not in broken:  # its own failure stands in a part that is missing
                roots.append(_first_reason(quoted, seen))
                broken.add(quoted.model)
        elif not _follows(each, broken) and not (_has(each, NOT_THERE) and each.model in told):
            reason = _first_reason(each, seen)
            if reason.number < each.number:  # what was said in between says the same again
                roots = [root for root in roots if root.model or root.number < reason.number]
            roots.append(reason)
    return roots


def _is_told_by_load(died: LogEvent, seen: Sequence[LogEvent]) -> bool:
    """Return whether a process died while its model was loaded: the failed load says why."""
    return died.time_s is None and not any(each.kind == "listening" and each.number < died.number for each in seen)


def _healed(roots: Sequence[LogEvent], seen: Sequence[LogEvent]) -> tuple[list[LogEvent], list[LogEvent]]:
    """Return the failures that stand, and those of models that were loaded later after all."""
    loaded = {each.model: each.number for each in seen if each.kind == "loaded"}
    healed = [each for each in roots if each.model and loaded.get(each.model, 0) > each.number]
    return [each for each in roots if each not in healed], healed


def _follows(each: LogEvent, broken: set[str]) -> bool:
    """Return whether an ensemble lacks a model that was itself refused."""
    return _has(each, ABSENT) and bool(_missing(each) & broken)


def _missing(each: LogEvent) -> set[str]:
    return {name.strip() for name in each.values.get("missing", "").split(",")}


def _has(each: LogEvent, code: str) -> bool:
    return each.fault is not None and each.fault.code == code


def _is_half(each: LogEvent, *, whole: bool) -> bool:
    """Return whether the model that another one lacks may have failed in a part of the log that is missing."""
    return each.fault is DEPENDS or (_has(each, ABSENT) and not whole)


def _half_seen(each: LogEvent) -> Cause:
    missing = (each.values.get("missing") or each.values.get("step") or "a model").strip()
    return Cause(
        "",
        f"it lacks {missing}: absent, or refused in the part of the log that is missing",
        *(each.model, each.text, each.number, each.time_s),
        fix="look at the beginning of the log, or run `ensemblekit lint`",
    )


def _quoted(each: LogEvent) -> LogEvent | None:
    """Return the failure that a consequence quotes."""
    match = _QUOTED.search(each.text)
    if match is None:
        return None
    words = match[2].strip().rstrip(";").removeprefix("Internal: ")
    return with_fault("stub", each.number, each.time_s, words, match["model"])


def _first_reason(each: LogEvent, seen: Sequence[LogEvent]) -> LogEvent:
    """Return the printed exception that a failure points to with "see above", else the failure itself."""
    if each.kind == "died":
        return _reason_of_death(each, seen)
    if not POINTS_BACK.search(each.text):
        return each
    before = [
        other for other in seen if other.number < each.number and other.kind in ("exception", "printed", "blocked")
    ]
    reasons = [other for other in before if not POINTS_BACK.search(other.text)]
    # words that the catalogue knows well are the reason; else the exception that came last before the failure
    special = [other for other in reasons if other.fault and not other.fault.general]
    found = special[:1] or reasons[-1:]
    if not found:
        return replace(each, fault=None) if each.fault and each.fault.general else each
    return replace(found[0], model=each.model)


def _reason_of_death(died: LogEvent, seen: Sequence[LogEvent]) -> LogEvent:
    """Return a process's death with the exception that was printed next to it."""
    near = (each for each in seen if each.kind == "exception" and abs(each.number - died.number) <= FAR)
    said = next(near, None)
    return replace(died, text=f"{died.text}\n{said.text}") if said else died


FAR = 60  # lines between an engine's last words and the exception that ended it


def _cause(each: LogEvent, context: Context) -> Cause:
    where = (each.model, each.text, each.number, each.time_s)
    api = HIDDEN.format(model=each.model) if each.kind == "refused" else ""
    if each.fault is None:
        return Cause("", "these words are not in the catalogue", *where, api=api)
    known = resolve(each.fault, each.values, each.text, context)
    special = f"{known.found[0].upper()}{known.found[1:]}. " if known.found != known.title else ""
    severity = "warning" if each.kind == "warned" else "error"
    return Cause(
        known.code, known.title, *where, special + known.cause, known.fix, known.link, api, known.note, severity
    )


def _unique(causes: Sequence[Cause]) -> list[Cause]:
    """Return each cause once: of a fault that a model's load names, what a process said of it before is the same."""
    named = {cause.code for cause in causes if cause.code and cause.model}
    kept: dict[tuple[str, str, str], Cause] = {}
    for cause in causes:
        if cause.model or cause.code not in named:
            kept.setdefault((cause.code, cause.model, "" if cause.known else cause.says), cause)
    return list(kept.values())


def _state(seen: Sequence[LogEvent]) -> State:
    listens = next((each.number for each in reversed(seen) if each.kind == "listening"), 0)
    for each in reversed(seen):
        # a port in use is said after the first of two endpoints listens; what a stub prints ends no server that listens
        if each.kind == "gives up" or (each.kind == "start" and (each.number > listens or each.time_s is not None)):
            return "crashed" if each.fault is not None and each.fault.code in CRASHES else "gave up"
    kinds = {each.kind for each in seen}
    if "stopped" in kinds:
        return "stopped"
    if listens:
        return "incomplete" if "incomplete" in kinds else "ready"
    return "no end"


def _role(
    each: LogEvent, roots: Sequence[LogEvent], state: State, seen: Sequence[LogEvent]
) -> Literal["step", "cause", "consequence"]:
    if any(each.number == root.number and each.fault is not DEPENDS for root in roots):
        return "cause"
    if each.kind in FAILURES or each.kind in ("gives up", "incomplete"):
        return "consequence"
    gave_up = next((other.number for other in seen if other.kind == "gives up"), None)
    if each.kind in ("unloading", "unloaded") and state == "gave up":
        return "consequence"
    return "consequence" if gave_up is None and each.kind == "exception" else "step"


def timeline_row(each: LogEvent, role: Literal["step", "cause", "consequence", "unknown"] = "step") -> TimelineRow:
    """Return an event as a row of the timeline."""
    what = KINDS[each.kind]
    if each.kind not in ("loading", "loaded", "unloading", "unloaded"):
        words = " ".join(each.text.split())
        what = f"{what}: {words[:SHORT]}{'…' if len(words) > SHORT else ''}"
    return TimelineRow(each.number, each.time_s, each.model or "server", what, role)
