# SPDX-License-Identifier: Apache-2.0
"""A check prints its sentence or fails with it."""

import pytest

from ensemblekit.errors import CheckFailed
from ensemblekit.lesson.check import check


def test_check_holds_prints_the_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    check("two and two make four", 2 + 2 == 4)

    assert capsys.readouterr().out == "ok: two and two make four\n"


def test_check_does_not_hold_says_what_was_found() -> None:
    with pytest.raises(CheckFailed, match=r"confirm that it is so[\s\S]*Found: 7[\s\S]*Hint: "):
        check("it is so", holds=False, found=7)


@pytest.mark.parametrize("value", [1, "yes", None, []], ids=["number", "text", "none", "list"])
def test_check_of_no_bool_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="needs a bool"):
        check("it is so", value)  # type: ignore[arg-type]
