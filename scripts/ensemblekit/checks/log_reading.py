# SPDX-License-Identifier: Apache-2.0
"""Exercise 1: the first error of a log, the model it is about, and that model's repair."""

import json
from collections.abc import Iterator
from typing import Any

from ensemblekit.checks.task import UNTOUCHED, Mistake, excerpt, lint_mistakes, task
from ensemblekit.faults.log import LogLine
from ensemblekit.repository.read import read_config
from ensemblekit.repository.stage import StagedRepository
from ensemblekit.servers.outcome import StartOutcome

__all__ = ["culprit", "errors", "reason", "repaired"]

DEFAULTS = {"max_tokens": 128, "temperature": 0.0}
PARAMETER = "default_sampling_parameters"
BROKEN = "{max_tokens: 128, temperature: 0.0}"


def _errors(outcome: StartOutcome) -> list[LogLine]:
    return [line for line in outcome.lines if line.level == "E" and "Cuda" not in line.message]


@task("the list holds the errors that matter")
def errors(outcome: StartOutcome, found: Any) -> Iterator[Mistake]:
    """Check the entries of level E that do not concern the GPU driver."""
    if not isinstance(found, list | tuple):
        yield Mistake(f"a {type(found).__name__}: {excerpt(found)}", "make it a list, for example [... for ... in ...]")
    if not all(isinstance(line, LogLine) for line in found):
        yield Mistake(excerpt(found[:2]), "keep the entries themselves, not their messages or levels")
    right = _errors(outcome)
    levels = sorted({line.level for line in found} - {"E"})
    if levels:
        yield Mistake(f"entries of level {', '.join(levels)} too", "an error has level E; W only warns, I informs")
    if any("Cuda" in line.message for line in found):
        about = "an entry about Cuda is among them"
        yield Mistake(about, "leave out entries whose message holds Cuda, as it is written: they are about the machine")
    if len(found) < len(right):
        about = f"{len(found)} of {len(right)} errors"
        yield Mistake(about, "only two conditions count: the level is E, and the message does not hold Cuda")
    if sorted(line.number for line in found) == [line.number for line in right] and list(found) != right:
        yield Mistake(
            "the right entries in another order", "leave them in the order of the log: the first is the cause"
        )
    if list(found) != right:
        yield Mistake(f"{len(found)} entries, {len(right)} errors", "take each entry of outcome.lines once")


@task("the reason is the first error's message")
def reason(outcome: StartOutcome, found: Any) -> Iterator[Mistake]:
    """Check the message of the first error."""
    messages = [line.message for line in _errors(outcome)]
    if isinstance(found, LogLine):
        yield Mistake("an entry of the log", "take the entry's `message`")
    if not isinstance(found, str):
        yield Mistake(f"a {type(found).__name__}: {excerpt(found)}", "the reason is the text of one message")
    if found in messages[1:]:
        place = ("second", "third", "fourth")[min(messages[1:].index(found), 2)]
        about = f"the {place} error: {excerpt(found)}"
        yield Mistake(about, "later errors are consequences: the first one is the cause")
    if found.strip() == outcome.last_line.strip():
        yield Mistake(
            "the log's last line", "the last line only says that the server gave up; go back to your first error"
        )
    if "Cuda" in found:
        yield Mistake(excerpt(found), "that is about the machine's GPU driver, not about a model")
    if found.strip() and found.strip() != messages[0].strip() and found.strip() in messages[0]:
        yield Mistake(f"a part of it: {excerpt(found)}", "take the whole message, from your list rather than typed")
    if found.strip() != messages[0].strip():
        yield Mistake(excerpt(found), "take the message of the first entry of your list `errors`")


@task("the culprit is the model that could not start")
def culprit(outcome: StartOutcome, found: Any) -> Iterator[Mistake]:
    """Check the name of the model that failed first."""
    failed = [load.model for load in outcome.loads if load.failure]
    if not isinstance(found, str):
        yield Mistake(excerpt(found), "give the model's name as a text in quotes")
    if found == "ensemble":
        yield Mistake("'ensemble'", "the ensemble only lacks one of its models: which one?")
    if found.strip().lower() in failed and found not in failed:
        yield Mistake(excerpt(found), "write the name exactly as the folder is named, with no blanks or capitals")
    if found in outcome.loaded:
        yield Mistake(f"{found!r}, which was loaded", "look for the model that an error says could not be loaded")
    if found not in failed and any(name in found for name in failed):
        yield Mistake(excerpt(found), "give the bare name of the model, without version, path or other words")
    if found not in failed:
        yield Mistake(excerpt(found), "the second error names the model, in single quotes")


@task("the model's parameter is right again")
def repaired(repository: StagedRepository) -> Iterator[Mistake]:
    """Check the default sampling parameters in the staged configuration of preprocess."""
    config = read_config(repository.path / "preprocess")
    if PARAMETER not in config.parameters:
        yield Mistake("the parameter is gone", f"preprocess needs {PARAMETER}: give it a text instead of removing it")
    text = config.parameters[PARAMETER].string_value
    if text == BROKEN:
        yield UNTOUCHED
    if not text.strip():
        yield Mistake("an empty text", "an empty text is no JSON: give the two values of before")
    if "'" in text:
        yield Mistake(text, "JSON knows no single quotes: names stand in double quotes")
    try:
        value = json.loads(text)
    except ValueError as error:
        yield Mistake(
            f"{text} is no JSON: {error}", "put each name in double quotes, with no comma after the last value"
        )
        return
    if not isinstance(value, dict):
        about = f"a JSON {type(value).__name__}: {text}"
        yield Mistake(about, "the text is one JSON object, written once: braces outside, no further quotes around them")
    if missing := [name for name in DEFAULTS if name not in value]:
        yield Mistake(text, f"{' and '.join(missing)} got lost: repair the quotes and keep the values")
    if any(isinstance(value[name], str) for name in DEFAULTS):
        yield Mistake(text, "only the names stand in quotes: in quotes a number is a text")
    if changed := [name for name in DEFAULTS if value[name] != DEFAULTS[name]]:
        yield Mistake(text, f"the value of {' and '.join(changed)} is another now: repair the quotes, keep the values")
    if value != DEFAULTS:
        yield Mistake(text, f"more than the colleague's two values: {', '.join(value.keys() - DEFAULTS.keys())}")
    yield from lint_mistakes(repository)
