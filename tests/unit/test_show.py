# SPDX-License-Identifier: Apache-2.0
"""What readers see besides values."""

import pytest

from ensemblekit.lesson.show import StatusLine, quick_banner, table
from ensemblekit.paths import BATCH_VARIABLE


def test_quick_banner_says_that_vllm_did_not_run() -> None:
    assert "stand-in" in quick_banner()
    assert "No vLLM" in quick_banner()


@pytest.mark.parametrize("installed", [True, False], ids=["full", "quick"])
def test_quick_banner_says_nothing_of_vllm_was_installed_only_where_that_is_so(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemblekit.lesson.show.find_spec", lambda name: object() if installed else None)

    assert ("installed, fetched or run" in quick_banner()) is not installed


def test_table_with_bars_and_lines_keeps_its_columns() -> None:
    assert (table([("a|b", "c\nd")], ("x", "y")).data or "").splitlines()[-1] == "| a\\|b | c<br>d |"


def test_status_line_in_a_batch_run_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(BATCH_VARIABLE, "1")

    with StatusLine("work") as line:
        line.tick()

    assert capsys.readouterr() == ("", "")
