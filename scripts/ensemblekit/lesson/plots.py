# SPDX-License-Identifier: Apache-2.0
"""The lessons' pictures. Each function returns a figure of what it is given; nothing is measured here."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ensemblekit.clients.grpc import Answer
from ensemblekit.diagnose.explain.diagnosis import Explanation, TimelineRow
from ensemblekit.faults.log import LogLine, ModelLoad
from ensemblekit.faults.start_phases import PHASES
from ensemblekit.repository.read import read_config
from ensemblekit.repository.stage import StagedRepository
from ensemblekit.servers.outcome import StartOutcome

__all__ = [
    "draw_pipeline",
    "plot_bars",
    "plot_explanation",
    "plot_start_phases",
    "plot_start_timeline",
    "plot_statistics",
    "plot_tokens",
]

# readable when colour-blind; black on GREEN, BLUE and AMBER, and RED and GREY on white, have a contrast above 4.5
GREEN, BLUE, AMBER, RED, GREY = "#76b900", "#3b7dd8", "#f2a33a", "#c8323d", "#5f6671"
WIDTH_IN = 9.0  # a notebook column
ROW_IN = 0.42
LABEL = 34  # letters of a question beside its row
MILLISECONDS = 1000.0
# the pipeline, in boxes: a gap holds the longest tensor name of the kit's own ensemble
BOX, GAP, OUTER, MARGIN = 1.3, 2.0, 1.8, 0.2
UNIT_IN = 0.95  # wide enough for those names, however many steps there are
STEP = BOX + GAP
MARK = {"cause": (RED, "X"), "consequence": (GREY, "o"), "unknown": (AMBER, "s")}
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 11, "fontweight": "bold"}


def _figure(rows: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, 1.3 + ROW_IN * rows), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_start_timeline(outcome: StartOutcome) -> Figure:
    """Draw how a start went: what each model did, which directory was refused, when the server gave up.

    Raises:
        OSError: The log is gone.
    """
    lines = outcome.lines
    end_s = lines[-1].time_s if lines else 0.0
    refused = [(line.time_s, line.message) for line in lines if line.message in outcome.poll_errors]
    figure, axes = _figure(len(outcome.loads) + len(refused) + 1)
    names = [load.model for load in outcome.loads]
    for row, load in enumerate(outcome.loads):
        _bars(axes, row, (load.loading_s, end_s if load.loaded_s is None else load.loaded_s), load, end_s)
    for time_s, message in refused:
        names.append(message.split("'")[1])
        axes.plot(time_s, len(names) - 1, "X", color=RED, markersize=11, clip_on=False)
        reason = message.split(": ", 1)[1]
        _say_beside(axes, (time_s, len(names) - 1), f"refused: {reason}")
    if not outcome.ready:
        _mark_end(axes, lines, end_s, outcome)
    _name_rows(axes, names, max(end_s, 0.1))
    axes.set_xlabel("seconds since the server's first log line")
    axes.set_title("What the server did, by its own log", **TITLE)
    figure.set_label(_start_in_words(outcome, [message.split("'")[1] for _time_s, message in refused]))
    return figure


def _name_rows(axes: Axes, names: Sequence[str], end_s: float) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.8)
    axes.set_xlim(-0.015 * end_s, end_s * 1.02)  # room for a mark at the very beginning


def _start_in_words(outcome: StartOutcome, refused: Sequence[str]) -> str:
    end = "the server is ready" if outcome.ready else f"the server ends with exit code {outcome.exit_code}"
    if outcome.exit_code is None and not outcome.ready:
        end = "the server is stopped before it is ready"
    loads = f"{', '.join(load.model for load in outcome.loads) or 'no model'} began to load"
    refusals = f"{', '.join(refused)} refused at the beginning, " if refused else ""
    return f"Timeline of a server's start: {refusals}{loads}, {end}."


def _say_beside(axes: Axes, mark: tuple[float, float], words: str) -> None:
    axes.annotate(words, mark, (12, 0), textcoords="offset points", va="center", color=RED)


def _bars(axes: Axes, row: int, loading: tuple[float, float] | None, load: ModelLoad, end_s: float) -> None:
    """Draw when a model was loading, and from when to when it was loaded."""
    bars = [(*loading, BLUE, "loading")] if loading else []
    if load.loaded_s is not None and load.unloaded_s is None:
        bars.append((load.loaded_s, end_s, GREEN, "ready"))
    elif load.loaded_s is not None and load.unloaded_s is not None:
        bars.append((load.loaded_s, load.unloaded_s, AMBER, "loaded, then unloaded"))
    for begin_s, stop_s, colour, text in bars:
        axes.barh(row, stop_s - begin_s, left=begin_s, height=0.5, color=colour)
        if stop_s - begin_s > 0.012 * len(text) * end_s:  # only where the bar is wide enough for the words
            axes.text((begin_s + stop_s) / 2, row, text, ha="center", va="center", color="black", fontsize=8)


def _mark_end(axes: Axes, lines: Sequence[LogLine], end_s: float, outcome: StartOutcome) -> None:
    axes.axvline(end_s, color=RED, linewidth=1.5)
    text = f"exit code {outcome.exit_code}" if outcome.kind == "exited" else "stopped: not ready"
    axes.annotate(text, (end_s, -0.65), (-4, 0), textcoords="offset points", ha="right", va="center", color=RED)


def draw_pipeline(
    repository: StagedRepository, ensemble: str = "ensemble", *, states: Mapping[str, str] | None = None
) -> Figure:
    """Draw an ensemble from its config: the models as boxes with their `states`, the tensors between them as arrows.

    Raises:
        RepositoryError: The config cannot be read.
    """
    config = read_config(repository.path / ensemble)
    steps = config.ensemble_scheduling.step
    last = (len(steps) - 1) * STEP + BOX
    figure = Figure(figsize=(UNIT_IN * (last + 2 * OUTER), 2.6), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_xlim(-OUTER - 0.05, last + OUTER + 0.05)
    axes.set_ylim(-0.95, 1.0)
    frame = FancyBboxPatch(
        (-MARGIN, -0.75), last + 2 * MARGIN, 1.5, boxstyle="round,pad=0.02", fill=False, ls="--", ec=GREY
    )
    axes.add_patch(frame)
    axes.text(-MARGIN, 0.8, _label(ensemble, states, "platform: ensemble"), color=GREY, va="bottom", fontsize=9)
    _arrow(axes, -OUTER, -0.03, [tensor.name for tensor in config.input], shift=-MARGIN / 2)
    for number, step in enumerate(steps):
        backend, model = read_config(repository.path / step.model_name).backend, step.model_name
        _box(axes, number * STEP, model, _label("", states, f"backend: {backend}", model))
        if number:
            _arrow(axes, number * STEP - GAP + 0.03, number * STEP - 0.03, sorted(set(step.input_map.values())))
    _arrow(axes, last + 0.03, last + OUTER, [tensor.name for tensor in config.output], shift=MARGIN / 2)
    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (config.input, config.output))
    chain = " to ".join([" and ".join(inputs), *(step.model_name for step in steps), " and ".join(outputs)])
    words = "".join(f"; {model} is {state}" for model, state in (states or {}).items())
    figure.set_label(f"Diagram of {ensemble}, a pipeline from {chain}{words}.")
    return figure


def _label(name: str, states: Mapping[str, str] | None, detail: str, model: str | None = None) -> str:
    state = (states or {}).get(model or name)
    return "\n".join(filter(None, [f"{name}  ({detail})" if name else detail, state]))


def _box(axes: Axes, x: float, title: str, detail: str) -> None:
    box = FancyBboxPatch((x, -0.42), BOX, 0.84, boxstyle="round,pad=0.02", fc=GREEN, ec="none")
    axes.add_patch(box)
    axes.text(x + BOX / 2, 0.12, title, ha="center", va="center", fontsize=10, fontweight="bold", color="black")
    axes.text(x + BOX / 2, -0.17, detail, ha="center", va="center", fontsize=8, color="black")


def _arrow(axes: Axes, begin: float, end: float, tensors: Sequence[str], shift: float = 0.0) -> None:
    axes.annotate("", (end, 0), (begin, 0), arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.6})
    middle = (begin + end) / 2 + shift
    axes.text(middle, 0.07, "\n".join(tensors), ha="center", va="bottom", fontsize=8, color="black")


def _bar_chart(values: Mapping[str, float], unit: str, colours: Sequence[str]) -> tuple[Figure, Axes, str]:
    """Return a bar for each value with its name and number, and the same in words."""
    figure, axes = _figure(max(1, len(values)))
    axes.barh(range(len(values)), list(values.values()), height=0.55, color=colours)
    for number, value in enumerate(values.values()):
        axes.text(value, number, f"  {value:.1f} {unit}", va="center", fontsize=9)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(max(1, len(values)) - 0.4, -0.6)
    axes.set_xlim(0, max(values.values(), default=1.0) * 1.15 or 1.0)
    return figure, axes, ", ".join(f"{name} {value:.1f} {unit}" for name, value in values.items())


def plot_bars(values: Mapping[str, float], unit: str, title: str) -> Figure:
    """Draw a bar for each value with its name."""
    figure, axes, words = _bar_chart(values, unit, [BLUE] * len(values))
    axes.set_xlabel(unit)
    axes.set_title(title, **TITLE)
    figure.set_label(f"Bars, {title}: {words}.")
    return figure


def plot_start_phases(phases: Mapping[str, float]) -> Figure:
    """Draw where the seconds of a start went, as `start_phases` gives them."""
    values = {PHASES.get(name, name): seconds for name, seconds in phases.items()}
    figure, axes, words = _bar_chart(values, "s", [GREY if name == "rest" else BLUE for name in phases])
    if not phases:
        axes.text(0.5, 0, "the log of this start is not here", ha="center", va="center", color=GREY)
    axes.set_xlabel("seconds")
    axes.set_title("Where the start went, by the server's own log", **TITLE)
    figure.set_label(f"Bars of the seconds of a start: {words or 'its log is not here'}.")
    return figure


def plot_tokens(answers: Sequence[Answer]) -> Figure:
    """Draw when each piece of each answer arrived, one row an answer."""
    figure, axes = _figure(len(answers))
    for row, answer in enumerate(answers):
        times_ms = [time_s * MILLISECONDS for time_s in answer.times_s]
        axes.plot(times_ms, [row] * len(times_ms), "|", color=BLUE, markersize=12, markeredgewidth=1.6)
        axes.plot(times_ms[0], row, "o", color=GREEN, markersize=6)
    axes.set_yticks(range(len(answers)), [_short(answer.question) for answer in answers])
    axes.set_ylim(len(answers) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds since the request (dot: first piece)")
    axes.set_title("When the pieces of each answer arrived", **TITLE)
    pieces, last_s = sum(len(answer.pieces) for answer in answers), max(answer.elapsed_s for answer in answers)
    figure.set_label(f"A row of marks for each of {len(answers)} answers: {pieces} pieces within {last_s:.1f} s.")
    return figure


def _short(text: str) -> str:
    return text if len(text) <= LABEL else text[: LABEL - 1] + "…"


def plot_statistics(seconds: Mapping[str, float]) -> Figure:
    """Draw where the time of a request goes: mean milliseconds in each step, as `time_by_step` gives them."""
    values = {name: value * MILLISECONDS for name, value in seconds.items()}
    figure, axes, words = _bar_chart(values, "ms", [BLUE] * (len(values) - 1) + [GREEN])
    axes.set_xlabel("milliseconds a request through the ensemble, mean")
    axes.set_title("Where the time goes, by Triton's own statistics", **TITLE)
    figure.set_label(f"Bars of the mean time of a request in each step: {words}.")
    return figure


def plot_explanation(found: Explanation) -> Figure:
    """Draw what a log says: bars while a model loads and is loaded, a cross at each root cause."""
    names = list(dict.fromkeys(each.who for each in found.moments)) or ["server"]
    end_s = max((each.time_s or 0.0 for each in found.moments), default=0.0) or 1.0
    figure, axes = _figure(len(names))
    for row, name in enumerate(names):
        _draw_row(axes, row, [each for each in found.moments if each.who == name], end_s)
    for cause in found.causes:
        row = names.index(cause.model or "server") if (cause.model or "server") in names else 0
        _say_beside(axes, (cause.time_s or 0.0, row), cause.title)
    _name_rows(axes, names, end_s)
    axes.set_xlabel("seconds since the log's first entry")
    axes.set_title(found.headline[:1].upper() + found.headline[1:], **TITLE)
    figure.set_label(f"Timeline of a log: {found.headline}.")
    return figure


def _draw_row(axes: Axes, row: int, rows: list[TimelineRow], end_s: float) -> None:
    begins, loaded, gone = (
        next((each.time_s for each in rows if each.what == what), None)
        for what in ("begins to load", "is loaded", "is unloaded")
    )
    failed = next((each.time_s for each in rows if each.role == "cause"), None)
    stop = next((time for time in (loaded, failed) if time is not None), end_s)
    _bars(axes, row, None if begins is None else (begins, stop), ModelLoad("", begins or 0.0, loaded, gone), end_s)
    last = 0.0
    for each in rows:
        last = each.time_s if each.time_s is not None else end_s if each.role == "consequence" else last
        if each.role in MARK and not each.what.startswith("is unload"):
            colour, marker = MARK[each.role]
            axes.plot(last, row, marker, color=colour, markersize=11 if each.role == "cause" else 8, clip_on=False)
