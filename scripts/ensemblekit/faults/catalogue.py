# SPDX-License-Identifier: Apache-2.0
"""Every fault the kit knows, by code, and `recognise`: the one function that says what a server's words mean.

A failed start, `explain`, `doctor`, the container provider and a build ask the same function.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from ensemblekit.faults.container import BUILD_FAULTS, CODE_FAULTS, ENGINE_REFUSALS, KILLED, REFUSED
from ensemblekit.faults.engine import ENGINE_FAULTS, GPU_FAULTS
from ensemblekit.faults.fault import NO_CONTEXT, Context, Fault, Recognised
from ensemblekit.faults.load import LOAD_FAULTS
from ensemblekit.faults.log import FAILED, parse_log
from ensemblekit.faults.poll import POLL_FAULTS
from ensemblekit.faults.serve import SERVE_FAULTS
from ensemblekit.faults.server import SERVER_FAULTS

__all__ = [
    "CATALOGUE",
    "DEPENDS",
    "ENGINE_REASONS",
    "ENGINE_STARTS",
    "FAULTS",
    "HARMLESS",
    "OF_ENGINES",
    "container_refusal",
    "context_of",
    "fault",
    "look_up",
    "may_be_known",
    "recognise",
    "release_of",
    "resolve",
]

FAULTS: tuple[Fault, ...] = (*POLL_FAULTS, *LOAD_FAULTS, *SERVE_FAULTS)  # what a repository can have: lint's
_SERVER: tuple[Fault, ...] = (*FAULTS, *ENGINE_FAULTS, *SERVER_FAULTS, *ENGINE_REFUSALS)
CATALOGUE: tuple[Fault, ...] = (*_SERVER, *CODE_FAULTS, *BUILD_FAULTS)
_BY_CODE = {entry.code: entry for entry in CATALOGUE}
# The entry that says more first. A consequence last: its text quotes its cause.
# asked last: "a Python model's code failed" is true of most faults of engines as well, which say more; an ensemble
# lacks a model, a model depends on another: mostly because that one failed
LAST = ("E216", "E201", "E209")
_SEARCH = sorted(_SERVER, key=lambda entry: (entry.code in LAST and 1 + LAST.index(entry.code), entry.general))
DEPENDS = _BY_CODE["E209"]
# what an engine's own process says of a start that failed: more than Triton does of it
ENGINE_REASONS = (*GPU_FAULTS, _BY_CODE["S464"], _BY_CODE["T309"])
# Lines of level E, or that look so, which say nothing about a failure.
HARMLESS = (
    re.compile(r"^CudaDriverHelper has not been initialized"),  # a machine without a GPU
    re.compile(r"^unable to create stream for \S+: CUDA driver version is insufficient"),  # the same
    re.compile(r"^Failed to set config modification time: model_config_content_name_ is empty"),  # a config by request
)
# one of these stands in every line, printed by whatever program, that could say one of the faults
_SIGNS = re.compile(
    r"rror|emory|ailed|No space|Killed|137|np\.string_|NumPy|[Ss]ignal|unrecognized|healthy|fault|driver|Serialized"
    r"|Unable|must be |undefined symbol|not found|terminate called|stol|core dumped|[Aa]bort|not supported|capability"
    r"|Exception|larger than|greater than|died|not compatible|does not|No module|Version tag|Magic tag|NCCL|[Cc]annot "
    r"|trust|json\.exception|not running|unable to|compatibility|No schema|No Op|no kernel|incompatible|in vain"
)
_DIGITS = re.compile(r"\d+")
_NUMBERS_THAT_SPEAK = ("137", "401", "403", "101", "ignal", "sm_")  # an exit code, a status, a signal: words of a fault
# a vLLM engine begins to start
ENGINE_STARTS = re.compile(r"Initializing an? (?:V\d )?LLM engine")
OF_ENGINES = frozenset({"S401", "S417", "S420", "S421", "T308", "T309"})  # said by a model with an engine on the GPU
_VERSION = re.compile(r"^\| server_version +\| ([\w.]+) ", re.MULTILINE)
FIRST_MONTH, LAST_MINOR = 20 * 12 + 5, 73  # 2.0.0 is 20.06, 2.73.0 is 26.09, the newest that was seen
SHAPES = 4096
LONGEST = 6000  # characters of a text that is no log; a traceback through a framework has about as many
_unknown_shapes: set[tuple[str, bool]] = set()
_BRANCH = re.compile(r"/blob/r\d\d\.\d\d/")
# The first and the last release whose branch was seen to have a page, by a part of its address.
_PAGES = (
    ("extension_generate", ("23.10", "26.08")),
    ("architecture.md", ("22.09", "26.01")),
    ("/server/", ("22.09", "26.08")),
    ("ensemble_utils", ("23.12", "26.06")),
    ("/core/", ("22.04", "26.06")),
    ("vllm_backend", ("23.10", "26.01")),
    ("tensorrtllm_backend", ("24.08", "24.10")),
    ("tensorrt_backend", ("21.09", "26.07")),
    ("", ("20.12", "26.05")),
)


def fault(code: str) -> Fault:
    """Return the fault with this code.

    Raises:
        KeyError: There is none.

    >>> fault("E101").title
    'this server was built without ensembles'
    """
    return _BY_CODE[code]


def recognise(text: str, context: Context = NO_CONTEXT, among: Sequence[Fault] = ()) -> Recognised | None:
    """Return the fault that a text speaks of, None if its words are unknown.

    A message that quotes another model's failure ("depends on ... loading failed with error: ...") gives the
    quoted failure, which is the cause.

    Args:
        text: A message, a printed line, an answer of the load API, or a whole log.
        context: What is at hand beside the words.
        among: Where to look, in this order; by default what a server can say.

    >>> found = recognise("unexpected platform type 'ensembel' for chat")
    >>> found.code, found.values["platform"], found.model
    ('E102', 'ensembel', 'chat')
    """
    if among:
        matches = ((entry, match) for entry in among if (match := entry.match(text)))
        entry_match = next(matches, None)
        return resolve(entry_match[0], _values(entry_match[1]), text, context) if entry_match else None
    known = look_up(text)
    return resolve(*known, text, context) if known else None


def look_up(text: str) -> tuple[Fault, dict[str, str]] | None:
    """Return the entry whose words a text holds, with the values in them, before anything decides between causes.

    Words that were unknown once are not looked up again when only their numbers differ: logs repeat themselves.
    """
    shape = text if any(number in text for number in _NUMBERS_THAT_SPEAK) else _DIGITS.sub("#", text)
    key = (shape[:LONGEST], len(shape) > LONGEST)
    if not key[1] and key in _unknown_shapes:
        return None
    found = _look_up(text)
    if found is None and not key[1]:
        if len(_unknown_shapes) >= SHAPES:
            _unknown_shapes.clear()
        _unknown_shapes.add(key)
    return found


@lru_cache(maxsize=1024)
def _look_up(text: str) -> tuple[Fault, dict[str, str]] | None:
    for entry in _SEARCH:
        if match := entry.match(text):
            return entry, _values(match)
    return None


def _values(match: re.Match[str]) -> dict[str, str]:
    return {name: value for name, value in match.groupdict().items() if value is not None}


def resolve(entry: Fault, values: Mapping[str, str], text: str, context: Context = NO_CONTEXT) -> Recognised:
    """Return what an entry says of a text: of several causes the one that the context decides for, else "one of"."""
    possible = _possible(entry, values, context)
    first = possible[0]
    one = len(possible) == 1
    detail = first.tell(values, text, context) if one else None
    title = first.title if one else "one of: " + "; ".join(each.title for each in possible)
    fix = first.fix if one else " ".join(f"If {each.title}: {each.fix}" for each in possible)
    if detail and detail.hint:
        fix = f"{detail.hint[0].upper()}{detail.hint[1:]}."
    return Recognised(
        fault=first,
        values=dict(values),
        title=title,
        found=detail.found if detail else title,
        hint=detail.hint if detail and detail.hint else fix,
        cause=first.cause if one else " ".join(f"{each.title.capitalize()}: {each.cause}" for each in possible),
        fix=fix,
        link=_link(first.link, context),
        note=_note(first, possible, text),
    )


def _possible(entry: Fault, values: Mapping[str, str], context: Context) -> list[Fault]:
    """Return the causes that a message may have, the likeliest first, as far as the context decides."""
    group = [entry, *(_BY_CODE[code] for code in entry.same_words)]
    if len(group) == 1:
        return group
    model = values.get("model", "")
    if linted := [each for each in group if (model, each.code) in context.findings]:
        return linted[:1]
    verdicts = [(each, each.holds(values, context) if each.holds else None) for each in group]
    certain = [each for each, holds in verdicts if holds]
    return certain[:1] or [each for each, holds in verdicts if holds is None] or group[:1]


def _link(link: str, context: Context) -> str:
    """Return a link to upstream's documentation of the release at hand, or of the nearest one that has the page."""
    if not context.release:
        return link
    first, last = next(span for part, span in _PAGES if part in link)
    return _BRANCH.sub(f"/blob/r{min(max(context.release, first), last)}/", link)


def _note(first: Fault, possible: Sequence[Fault], text: str) -> str:
    notes = list[str]()
    if len(possible) > 1:
        notes.append("the server says the same for all of them; `ensemblekit lint` on the repository tells them apart")
    if first.also and first.pattern and not first.expressions[0].search(text):
        releases = [old.releases for old in first.also if re.search(old.pattern, text, re.MULTILINE)]
        notes += [f"in the words of releases {name}" for name in releases[:1]]
    return "; ".join(notes)


def release_of(triton: str) -> str:
    """Return the release of a server's version, empty if it is not known.

    >>> release_of("2.49.0"), release_of("2.59.1"), release_of("")
    ('24.08', '25.07', '')
    """
    match = re.match(r"2\.(\d+)\.(\d+)", triton)
    if match is None or int(match[1]) > LAST_MINOR:
        return ""
    minor, patch = int(match[1]), int(match[2])
    # as TRITON_VERSION in the branches of triton-inference-server/server says: one a month since 20.06, but for 21.01,
    # which was none, and for 25.07, which was 2.59.1
    months = FIRST_MONTH + minor + (minor > 6) + (minor > 59 or (minor, patch) == (59, 1))
    return f"{months // 12}.{months % 12 + 1:02}"


def context_of(log: str, *, here: bool = False) -> Context:
    """Return what a whole log says beside the words of a failure.

    Args:
        log: The log of one start.
        here: Whether the server ran on this machine.
    """
    engines = {str(match.start()) for match in ENGINE_STARTS.finditer(log)}
    for line in parse_log(log):
        failed = FAILED.match(line.message)
        known = look_up(failed[2]) if failed else None
        if failed and known and known[0].code in OF_ENGINES:
            engines.add(failed[1])
    version = _VERSION.search(log)
    loads = "model_lifecycle.cc" in log
    return Context(
        max(1, len(engines)) if loads else None, release=release_of(version[1] if version else ""), here=here
    )


def may_be_known(text: str) -> bool:
    """Return whether a printed line may say a fault: a quick look, for logs of any size."""
    return _SIGNS.search(text) is not None


def container_refusal(exit_code: int | None, log: str) -> Recognised | None:
    """Return why a container engine did not start a container or did not keep it, None if it did both."""
    if exit_code == KILLED:
        return resolve(fault("C507"), {}, log)
    if exit_code not in REFUSED:
        return None
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    return recognise(last, among=ENGINE_REFUSALS) or resolve(fault("C506"), {}, last)
