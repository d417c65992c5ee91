# SPDX-License-Identifier: Apache-2.0
"""The fault catalogue holds together."""

import re

import pytest

from ensemblekit.faults.catalogue import FAULTS, fault, recognise
from ensemblekit.faults.fault import Fault

SAMPLE = {
    "model": "chat", "empty_model": "chat", "platform": "ensembel", "tensor": "text", "field": "model_name",
    "step": "1", "name": "other", "output": "answer", "input": "text", "path": "/models/chat/config.pbtxt",
    "missing": "pre", "here": "[1]", "there": "[2]", "origin": "pre", "size": "8", "step_size": "4", "version": "1",
    "backend": "dali", "group": "chat_0", "version_folder": "01", "bytes": "16", "repository": "/models",
    "reason": "which contains leading zeros in its directory name",
}  # fmt: skip
# their words hold a reason that the pattern must know, or the pattern belongs to another place
PARTIAL = {"E109", "E117", "E118", "E205", "E213", "E216", "E219", "E220", "T305", "T309", "T313"}


def test_codes_are_unique_and_sorted_within_their_kind() -> None:
    codes = [entry.code for entry in FAULTS]

    assert codes == sorted(set(codes))
    assert all(re.fullmatch(r"[ET]\d{3}", code) for code in codes)


@pytest.mark.parametrize("entry", FAULTS, ids=lambda entry: entry.code)
def test_every_fault_is_complete(entry: Fault) -> None:
    assert entry.title
    assert entry.cause.endswith((".", '"', "...).")), entry.cause
    assert entry.fix.endswith("."), entry.fix
    assert entry.link.startswith("https://github.com/triton-inference-server/")
    assert entry.phase == {"1": "poll", "2": "load", "3": "serve"}[entry.code[1]]
    assert all(fault(code).same_words for code in entry.same_words if code != "E117")


@pytest.mark.parametrize(
    "entry", [entry for entry in FAULTS if entry.message and entry.code not in PARTIAL], ids=lambda entry: entry.code
)
def test_the_words_of_a_fault_match_its_own_pattern(entry: Fault) -> None:
    text = entry.says(**(SAMPLE | ({"platform": "python"} if entry.code == "E103" else {})))

    assert entry.match(text), text
    found = recognise(text)
    assert found
    assert found.code in (entry.code, *entry.same_words)


def test_a_consequence_that_quotes_its_cause_gives_the_cause() -> None:
    text = (
        "ensemble 'chat' depends on 'pre' which has no loaded version. Model 'pre' loading failed with error: "
        "at least one version must be available under the version policy of model 'pre'"
    )

    found = recognise(text)

    assert found
    assert (found.code, found.model) == ("E207", "pre")


def test_a_text_without_a_known_fault_gives_none() -> None:
    assert recognise("successfully loaded 'pre'") is None
