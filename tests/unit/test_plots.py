# SPDX-License-Identifier: Apache-2.0
"""Pictures show the names and numbers they were given; nothing in them overlaps a box or is cut off."""

from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from ensemblekit.bench.report import plot_bench, plot_latency
from ensemblekit.clients.grpc import Answer
from ensemblekit.diagnose.explain.explainer import explain_log
from ensemblekit.lesson.measure import recorded_bench
from ensemblekit.lesson.plots import (
    draw_pipeline,
    plot_explanation,
    plot_start_phases,
    plot_start_timeline,
    plot_statistics,
    plot_tokens,
)
from ensemblekit.lesson.show import alternative_text
from ensemblekit.matrix.picture import plot_matrix
from ensemblekit.matrix.run import Cell, MatrixResult, State
from ensemblekit.repository.stage import StagedRepository
from ensemblekit.servers.outcome import outcome_of
from tests.conftest import DATA

AA, SMALLEST_PT = 4.5, 8.0  # WCAG 2's contrast for text of any size; a size that a page's own text has
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


def _brightness(colour: object) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    channels = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))  # type: ignore[arg-type]
    return float(sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), channels, strict=True)))


def _contrast(one: object, other: object) -> float:
    dark, light = sorted((_brightness(one), _brightness(other)))
    return (light + 0.05) / (dark + 0.05)


def _behind(figure: Figure, text: Text) -> object:
    """The colour behind a text: that of the last filled patch which its middle lies in, or the picture's own."""
    x, y = text.get_window_extent().get_points().mean(axis=0)
    patches = [
        patch for axes in figure.axes for patch in axes.patches if patch.get_fill() and patch.get_alpha() is None
    ]
    inside = [patch for patch in patches if patch.get_window_extent().contains(x, y)]
    return inside[-1].get_facecolor() if inside else figure.get_facecolor()


def _touches(text: Bbox, frame: Bbox) -> bool:
    """Whether a text lies across the edge of a frame, or nearer to it than a pixel."""
    wide = Bbox.from_extents(text.x0 - 1, text.y0 - 1, text.x1 + 1, text.y1 + 1)
    return wide.overlaps(frame) and not (frame.contains(wide.x0, wide.y0) and frame.contains(wide.x1, wide.y1))


def _figures(repository: Path) -> dict[str, Figure]:
    """Every picture of the lessons, with each colour that it can have."""
    outcome = outcome_of("exited", 1, 4.0, GENUINE)
    states: tuple[State, ...] = ("answered", "refused", "failed", "not run")
    cells = tuple(
        Cell(f"24.{at:02d}", "vllm-image", "embedded", "x", state, "", 1.0) for at, state in enumerate(states, 7)
    )
    states_of_models = {"llm": "READY", "ensemble": "refused", "preprocess": "UNAVAILABLE"}
    bench = recorded_bench("2026-11-26-h100-streams")
    return {
        "timeline": plot_start_timeline(outcome),
        "timeline of a timeout": plot_start_timeline(outcome_of("timeout", None, 4.0, GENUINE)),
        "explanation": plot_explanation(explain_log(GENUINE)),
        "pipeline": draw_pipeline(StagedRepository(repository, {})),
        "pipeline with states": draw_pipeline(StagedRepository(repository, {}), states=states_of_models),
        "tokens": plot_tokens([Answer("What is it?", ("a", "b"), (0.1, 0.2))]),
        "statistics": plot_statistics({"preprocess": 0.0012, "rest": 0.5}),
        "phases": plot_start_phases({"import": 9.3, "rest": 2.0}),
        "no phases": plot_start_phases({}),
        "matrix": plot_matrix(MatrixResult(cells)),
        "bench": plot_bench(bench),
        "latency": plot_latency(bench, "http streamed greedy"),
    }


def test_text_of_every_picture_is_readable_in_light_and_dark(model_repo: Path) -> None:
    wrong = []
    for name, figure in _figures(model_repo).items():
        FigureCanvasAgg(figure).draw()
        assert to_rgba(figure.get_facecolor()) == (1, 1, 1, 1), name  # its own background, also on a dark page
        frames = [patch.get_window_extent() for axes in figure.axes for patch in axes.patches]
        for text in (one for one in figure.findobj(Text) if one.get_text().strip() and one.get_visible()):
            contrast = _contrast(text.get_color(), _behind(figure, text))
            beside_a_bar = text.get_text().startswith(" ")
            touched = not beside_a_bar and any(_touches(text.get_window_extent(), frame) for frame in frames)
            if contrast < AA or text.get_fontsize() < SMALLEST_PT or touched:
                wrong.append((name, text.get_text(), round(contrast, 2), text.get_fontsize(), touched))
    assert wrong == []


def test_every_picture_says_in_words_what_it_shows(model_repo: Path) -> None:
    texts = {name: alternative_text(figure) for name, figure in _figures(model_repo).items()}

    assert {name: text for name, text in texts.items() if len(text.split()) < 8} == {}
    assert len(set(texts.values())) == len(texts)


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
