# SPDX-License-Identifier: Apache-2.0
"""An error says what was tried, what was found, the evidence, and one hint."""

from pathlib import Path

import ensemblekit.errors
from ensemblekit.errors import KitError, ServerExited


def test_kit_error_text_has_the_facts_in_order() -> None:
    error = KitError("do it", found="nothing", hint="try", log_path=Path("a.log"), log_tail=["x", "y"])

    assert str(error).splitlines() == [
        "Could not do it.", "Found: nothing",
        "Last 2 log lines:", "```", "x", "y", "```", "Log: a.log", "Hint: try"
    ]  # fmt: skip


def test_kit_error_without_log_is_three_lines() -> None:
    assert len(str(KitError("do it", found="nothing", hint="try")).splitlines()) == 3


def test_errors_all_are_kit_errors_and_stand_in_the_tree() -> None:
    names = [name for name in ensemblekit.errors.__all__ if name != "one_of"]  # the check that raises one

    for name in names:
        assert issubclass(getattr(ensemblekit.errors, name), KitError)
        assert name in (ensemblekit.errors.__doc__ or "")


def test_server_exited_has_no_exit_code_until_set() -> None:
    assert ServerExited("x", found="y", hint="z").exit_code is None
