# SPDX-License-Identifier: Apache-2.0
"""What readers see besides values."""

from dataclasses import replace

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import Markdown
from matplotlib.figure import Figure

from ensemblekit.lesson.measure import bench_table, recorded_bench
from ensemblekit.lesson.plots import plot_statistics
from ensemblekit.lesson.show import StatusLine, alternative_text, quick_banner, show_figures_in_kernel, table
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


def test_text_from_outside_is_text_wherever_a_lesson_shows_markdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's name in a progress line, a machine's in the line below a measurement."""
    shown = list[Markdown]()
    monkeypatch.delenv(BATCH_VARIABLE, raising=False)
    monkeypatch.setattr("ensemblekit.lesson.show.get_ipython", InteractiveShell)
    monkeypatch.setattr("ensemblekit.lesson.show.display", lambda text, **_more: shown.append(text))
    StatusLine("loading <script>alert(1)</script>").tick("[x](javascript:alert(1))")
    record = recorded_bench("2026-11-26-h100-whole")
    shown.append(bench_table(replace(record, machine=record.machine | {"device": "<script>alert(1)</script>"})))

    for text in shown:
        assert "&lt;script>" in text.data
        assert "<script" not in text.data
        assert "](javascript" not in text.data


def test_status_line_in_a_batch_run_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(BATCH_VARIABLE, "1")

    with StatusLine("work") as line:
        line.tick()

    assert capsys.readouterr() == ("", "")


def test_figure_in_a_kernel_carries_its_alternative_text(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = InteractiveShell()
    monkeypatch.setattr("ensemblekit.lesson.show.get_ipython", lambda: shell)
    show_figures_in_kernel()

    data, metadata = shell.display_formatter.format(plot_statistics({"preprocess": 0.0012, "generating": 0.5}))

    shell.history_manager.end_session()
    assert data["image/png"]
    assert metadata["image/png"]["alt"] == (
        "Bars of the mean time of a request in each step: preprocess 1.2 ms, generating 500.0 ms."
    )


def test_figure_without_a_label_is_described_by_its_titles() -> None:
    figure = Figure()
    figure.subplots().set_title("Speed", loc="left")

    assert alternative_text(figure) == "Speed"
