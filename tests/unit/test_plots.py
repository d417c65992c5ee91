# SPDX-License-Identifier: Apache-2.0
"""Pictures show the names and numbers they were given; nothing in them overlaps a box or is cut off."""

from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from ensemblekit.clients.grpc import Answer
from ensemblekit.lesson.plots import draw_pipeline, plot_start_phases, plot_start_timeline, plot_statistics, plot_tokens
from ensemblekit.repository.stage import StagedRepository
from ensemblekit.servers.outcome import outcome_of
from tests.conftest import DATA

GENUINE = DATA / "logs" / "genuine-24.08-ensemble-off.log"


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def _cut_off(figure: Figure) -> list[str]:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    boxes = {text.get_text(): text.get_window_extent() for text in figure.findobj(Text) if text.get_text().strip()}
    return [
        name for name, box in boxes.items() if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]


def test_plot_start_timeline_of_the_failure_names_models_reason_and_exit_code() -> None:
    figure = plot_start_timeline(outcome_of("exited", 1, 4.0, GENUINE))

    texts = _texts(figure)
    assert {"pre", "main_app", "ensemble", "exit code 1"} <= set(texts)
    assert "refused: unexpected platform type 'ensemble' for ensemble" in texts
    assert _cut_off(figure) == []


def test_plot_start_timeline_of_an_empty_log_is_drawn(tmp_path: Path) -> None:
    figure = plot_start_timeline(outcome_of("timeout", None, 4.0, tmp_path / "none.log"))

    assert "stopped: not ready" in _texts(figure)


@pytest.mark.parametrize("repository", ["report_repository", "decoupled_repository"])
def test_draw_pipeline_names_models_and_tensors(repository: str) -> None:
    figure = draw_pipeline(StagedRepository(DATA / repository, {}))

    text = "\n".join(_texts(figure))
    assert "chat_input" in text
    assert "text_output" in text
    assert "platform: ensemble" in text
    assert _cut_off(figure) == []


def test_draw_pipeline_of_the_kit_keeps_tensor_names_out_of_the_boxes(model_repo: Path) -> None:
    figure = draw_pipeline(StagedRepository(model_repo, {}), states={"llm": "READY", "ensemble": "refused"})

    assert {"preprocess", "llm", "postprocess"} <= set(_texts(figure))
    assert any("READY" in text for text in _texts(figure))
    assert _cut_off(figure) == []
    titles = {text.get_text(): text.get_window_extent() for text in figure.findobj(Text) if text.get_text()}
    boxes = [patch.get_window_extent() for patch in figure.axes[0].patches[1:]]
    assert len(boxes) == 3
    for name, extent in titles.items():
        if name.split("\n")[0] in {"chat_input", "generated", "text_output", "exclude_prompt"}:
            assert not any(extent.overlaps(box) for box in boxes), name


def test_plot_tokens_has_a_mark_for_each_piece() -> None:
    figure = plot_tokens([Answer("What is it?", ("a", "b"), (0.1, 0.2)), Answer("x" * 99, ("a",), (0.3,))])

    assert [list(line.get_xdata()) for line in figure.axes[0].lines[::2]] == [[100.0, 200.0], [300.0]]
    assert "What is it?" in _texts(figure)
    assert _cut_off(figure) == []


def test_plot_statistics_writes_the_milliseconds_of_each_step() -> None:
    figure = plot_statistics({"preprocess": 0.0012, "rest": 0.5})

    assert {"preprocess", "rest", "  1.2 ms", "  500.0 ms"} <= set(_texts(figure))
    assert _cut_off(figure) == []


def test_plot_start_phases_writes_the_seconds_of_each_phase() -> None:
    figure = plot_start_phases({"import": 9.3, "compile": 17.25, "rest": 0.0})

    assert {"vLLM imported", "model compiled", "everything else", "  9.3 s", "  17.2 s"} <= set(_texts(figure))
    assert _cut_off(figure) == []


def test_plot_start_phases_of_a_server_started_elsewhere_says_so() -> None:
    figure = plot_start_phases({})

    assert "the log of this start is not here" in _texts(figure)
    assert _cut_off(figure) == []
