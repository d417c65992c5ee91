# SPDX-License-Identifier: Apache-2.0
"""A check prints its sentence or fails with it."""

from collections.abc import Iterator
from typing import Any

import pytest

from ensemblekit.checks.task import FILL_IN, Mistake, task
from ensemblekit.errors import CheckFailed
from ensemblekit.lesson.show import check


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


def test_failed_check_is_shown_without_a_trace() -> None:
    with pytest.raises(CheckFailed) as failed:
        check("it is so", holds=False)

    assert failed.value._render_traceback_() == [f"CheckFailed: {failed.value}"]
    assert "Found: the opposite" in str(failed.value)


def _untouched(text: str) -> str:
    """Return it loud."""
    ...


def test_task_tells_the_first_mistake_and_takes_no_untouched_answer(capsys: pytest.CaptureFixture[str]) -> None:
    @task("the number is small")
    def small(number: Any) -> Iterator[Mistake]:
        if number > 9:
            yield Mistake(f"{number}", "take a smaller one")

    small(3)
    assert capsys.readouterr().out == "ok: the number is small\n"
    with pytest.raises(CheckFailed, match=r"the number is small[\s\S]*Found: 10\nHint: take a smaller one"):
        small(10)
    with pytest.raises(CheckFailed, match="your code raised TypeError"):
        small("text")
    for untouched in (..., _untouched):
        with pytest.raises(CheckFailed, match=FILL_IN):
            small(untouched)
