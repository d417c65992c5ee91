# SPDX-License-Identifier: Apache-2.0
"""From what happened to why: which failures are root causes, and which only follow from another one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ensemblekit.diagnose.explain.events import Happening, Kind, with_fault
from ensemblekit.diagnose.explain.explanation import HIDDEN, Cause, Moment, State, Unknown
from ensemblekit.faults.catalogue import DEPENDS
from ensemblekit.faults.fault import Fault

__all__ = ["Diagnosis", "diagnose", "moment_of"]

FAILURES: tuple[Kind, ...] = ("refused", "failed", "blocked", "stub", "start")
ABSENT = "E201"
PARSE = ("E116", "E117")
BEFORE = 6  # lines between a parser's complaint and the refusal of the config that it is about
_QUOTED = re.compile(
    r"Model '(?P<model>[^']+)' loading failed with error: (?:version -?\d+ is at \w+ state: )?(.+)", re.S
)
_SEE_ABOVE = re.compile(
    r"[Ss]ee (?:the )?(?:root cause|stack trace|error).{0,10} above|Engine core initialization failed"
)
WHAT: dict[Kind, str] = {
    "loading": "begins to load",
    "loaded": "is loaded",
    "unloading": "is being unloaded",
    "unloaded": "is unloaded",
    "refused": "its config is refused",
    "failed": "fails to load",
    "blocked": "cannot be used",
    "stub": "its process reports",
    "start": "cannot go on",
    "gives up": "gives up",
    "incomplete": "goes on without them",
    "listening": "listens",
    "stopped": "is told to stop",
    "printed": "printed",
    "exception": "an exception was printed",
    "unknown": "an error",
}
SHORT = 110  # characters of the server's words in a row of the timeline


@dataclass(frozen=True)
class Diagnosis:
    """What one start of a server came to."""

    state: State
    causes: tuple[Cause, ...]
    notices: tuple[Cause, ...]
    unknown: tuple[Unknown, ...]
    moments: tuple[Moment, ...]


def diagnose(seen: Sequence[Happening], unknown: Sequence[Unknown], *, whole: bool = True) -> Diagnosis:
    """Return which of the things that happened in one start are causes, which consequences, and how it ended.

    Args:
        seen: What happened, in order.
        unknown: The error lines whose words are not known.
        whole: Whether the beginning of the start is there, where refused configs are named.
    """
    seen = _told_apart(seen)
    roots, healed = _healed(_roots(seen), seen)
    causes = [_cause(each) if whole or not _is_absent(each) else _half_seen(each) for each in roots]
    mentioned = [each for each in seen if each.kind == "printed" and each not in roots]
    notices = _unique([_cause(each) for each in (*healed, *mentioned)])
    notices = [each for each in notices if each.code not in {cause.code for cause in causes}]
    state = _state(seen)
    return Diagnosis(
        state,
        tuple(_unique(causes)),
        tuple(notices),
        tuple(unknown),
        tuple(moment_of(each, _role(each, roots, state, seen)) for each in seen if each.kind != "unknown"),
    )


def _told_apart(seen: Sequence[Happening]) -> list[Happening]:
    """Return what happened without what is said twice: by a process first, then with the model's name."""
    failed = [each.text for each in seen if each.kind in ("failed", "blocked")]
    kept = list[Happening]()
    for each in seen:
        if each.kind == "stub":
            first_line = each.text.splitlines()[0] if each.text else ""
            if any(first_line in text for text in failed) or any(first_line in old.text for old in kept):
                continue
        kept.append(_with_parser(each, kept) if each.fault and each.fault.code in PARSE else each)
    return [each for at, each in enumerate(kept) if not _is_parser_of_next(each, kept[at + 1 :])]


def _with_parser(refused: Happening, before: Sequence[Happening]) -> Happening:
    """Return the refusal of a config with the parser's reason, which stands in the lines before it."""
    if refused.kind != "refused":
        return refused
    near = (each for each in reversed(before) if refused.number - each.number <= BEFORE)
    parser = next((each for each in near if each.kind == "printed" and each.fault and each.fault.code in PARSE), None)
    if parser is None:
        return refused
    text = f"{refused.text}\n{parser.text[parser.text.find('Error parsing') :]}"
    return replace(refused, text=text, fault=parser.fault, values=refused.values | parser.values)


def _is_parser_of_next(each: Happening, following: Sequence[Happening]) -> bool:
    if each.kind != "printed" or not each.fault or each.fault.code not in PARSE:
        return False
    return any(other.kind == "refused" and other.number - each.number <= BEFORE for other in following)


def _roots(seen: Sequence[Happening]) -> list[Happening]:
    """Return the failures that follow from no other failure."""
    broken = {each.model for each in seen if each.kind in ("refused", "failed", "stub") and each.model}
    roots = list[Happening]()
    for each in seen:
        if each.kind not in FAILURES:
            continue
        if _depends(each):
            quoted = _quoted(each)
            if quoted and quoted.model not in broken:  # its own failure stands in a part that is missing
                roots.append(_first_reason(quoted, seen))
                broken.add(quoted.model)
        elif not _follows(each, broken):
            roots.append(_first_reason(each, seen))
    return roots


def _healed(roots: Sequence[Happening], seen: Sequence[Happening]) -> tuple[list[Happening], list[Happening]]:
    """Return the failures that stand, and those of models that were loaded later after all."""
    loaded = {each.model: each.number for each in seen if each.kind == "loaded"}
    healed = [each for each in roots if each.model and loaded.get(each.model, 0) > each.number]
    return [each for each in roots if each not in healed], healed


def _depends(each: Happening) -> bool:
    return each.fault is DEPENDS


def _follows(each: Happening, broken: set[str]) -> bool:
    """Return whether an ensemble lacks a model that was itself refused."""
    if not _is_absent(each):
        return False
    missing = {name.strip() for name in each.values.get("missing", "").split(",")}
    return bool(missing & broken)


def _is_absent(each: Happening) -> bool:
    return each.fault is not None and each.fault.code == ABSENT


def _half_seen(each: Happening) -> Cause:
    missing = each.values.get("missing", "a model").strip()
    return Cause(
        "", f"it lacks {missing}: absent, or refused in the part of the log that is missing", each.model, each.text,
        each.number, each.time_s, "", "look at the beginning of the log, or run `ensemblekit lint`", "",
    )  # fmt: skip


def _quoted(each: Happening) -> Happening | None:
    """Return the failure that a consequence quotes."""
    match = _QUOTED.search(each.text)
    if match is None:
        return None
    words = match[2].strip().rstrip(";").removeprefix("Internal: ")
    return with_fault("stub", each.number, each.time_s, words, match["model"])


def _first_reason(each: Happening, seen: Sequence[Happening]) -> Happening:
    """Return the printed exception that a failure points to with "see above", else the failure itself."""
    if not _SEE_ABOVE.search(each.text):
        return each
    before = [other for other in seen if other.number < each.number and other.kind in ("exception", "printed")]
    reasons = [other for other in before if not _SEE_ABOVE.search(other.text)]
    # words that the catalogue knows well are the reason; else the exception that came last before the failure
    special = [other for other in reasons if other.fault and not other.fault.general]
    found = special[:1] or reasons[-1:]
    return replace(found[0], model=each.model) if found else replace(each, fault=None)


def _cause(each: Happening) -> Cause:
    note = _note(each)
    if each.fault is None:
        return Cause("", "these words are not in the catalogue", each.model, each.text, each.number, each.time_s,
                     "", "", "", _hidden(each), note)  # fmt: skip
    fault: Fault = each.fault
    return Cause(
        fault.code, fault.title, each.model, each.text, each.number, each.time_s, fault.cause, fault.fix, fault.link,
        _hidden(each), note,
    )  # fmt: skip


def _hidden(each: Happening) -> str:
    return HIDDEN.format(model=each.model) if each.kind == "refused" else ""


def _note(each: Happening) -> str:
    if each.fault is None:
        return ""
    if each.fault.same_words:
        return f"the server says the same for {', '.join(each.fault.same_words)}; `ensemblekit lint` tells them apart"
    return ""


def _unique(causes: Sequence[Cause]) -> list[Cause]:
    kept: dict[tuple[str, str, str], Cause] = {}
    for cause in causes:
        kept.setdefault((cause.code, cause.model, "" if cause.known else cause.says), cause)
    return list(kept.values())


def _state(seen: Sequence[Happening]) -> State:
    kinds = [each.kind for each in seen]
    ended = next((each for each in reversed(seen) if each.kind in ("gives up", "start")), None)
    if ended:
        crashed = ended.fault is not None and ended.fault.code in ("S411", "S414")
        return "crashed" if crashed else "gave up"
    if "stopped" in kinds:
        return "stopped"
    if "listening" in kinds:
        return "incomplete" if "incomplete" in kinds else "ready"
    return "no end"


def _role(each: Happening, roots: Sequence[Happening], state: State, seen: Sequence[Happening]) -> str:
    if any(each.number == root.number and not _depends(each) for root in roots):
        return "cause"
    if each.kind in FAILURES or each.kind in ("gives up", "incomplete"):
        return "consequence"
    gave_up = next((other.number for other in seen if other.kind == "gives up"), None)
    if each.kind in ("unloading", "unloaded") and state == "gave up":
        return "consequence"
    return "consequence" if gave_up is None and each.kind == "exception" else "step"


def moment_of(each: Happening, role: str = "step") -> Moment:
    """Return a happening as a row of the timeline."""
    what = WHAT[each.kind]
    if each.kind not in ("loading", "loaded", "unloading", "unloaded"):
        words = " ".join(each.text.split())
        what = f"{what}: {words[:SHORT]}{'…' if len(words) > SHORT else ''}"
    return Moment(each.number, each.time_s, each.model or "server", what, role)  # type: ignore[arg-type]
