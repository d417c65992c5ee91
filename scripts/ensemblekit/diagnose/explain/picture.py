# SPDX-License-Identifier: Apache-2.0
"""The timeline of a log as a picture: what each model did, where the cause is, what only followed."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ensemblekit.diagnose.explain.explanation import Explanation, Moment

__all__ = ["plot_explanation"]

BLUE, GREEN, AMBER, RED, GREY = "#3b7dd8", "#76b900", "#f2a33a", "#d33f49", "#8a8f98"  # readable when colour-blind
WIDTH_IN, ROW_IN, FRAME_IN = 9.0, 0.42, 1.3
MARK = {"cause": (RED, "X"), "consequence": (GREY, "o"), "unknown": (AMBER, "s")}
NARROW = 0.012  # of the whole time a letter takes; a bar that is narrower than its word has none


def plot_explanation(found: Explanation) -> Figure:
    """Draw what a log says: bars while a model loads and is loaded, a cross at each root cause."""
    names = list(dict.fromkeys(moment.who for moment in found.moments)) or ["server"]
    end_s = max((moment.time_s or 0.0 for moment in found.moments), default=0.0) or 1.0
    figure = Figure(figsize=(WIDTH_IN, FRAME_IN + ROW_IN * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for row, name in enumerate(names):
        _draw_row(axes, row, [moment for moment in found.moments if moment.who == name], end_s)
    for cause in found.causes:
        row = names.index(cause.model or "server") if (cause.model or "server") in names else 0
        axes.annotate(
            cause.title, (cause.time_s or 0.0, row), (12, 0), textcoords="offset points", va="center", color=RED
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.8)
    axes.set_xlim(-0.015 * end_s, end_s * 1.02)
    axes.set_xlabel("seconds since the log's first entry")
    axes.set_title(found.headline[:1].upper() + found.headline[1:], loc="left", fontsize=11, fontweight="bold")
    return figure


def _draw_row(axes: Axes, row: int, moments: list[Moment], end_s: float) -> None:
    begins, loaded, gone = (_first(moments, what) for what in ("begins to load", "is loaded", "is unloaded"))
    if begins is not None:
        failed = next((moment.time_s for moment in moments if moment.role == "cause"), None)
        stop = next((time for time in (loaded, failed, end_s) if time is not None), end_s)
        _bar(axes, row, begins, stop, end_s, BLUE, "loading")
    if loaded is not None:
        text = "ready" if gone is None else "loaded, then unloaded"
        _bar(axes, row, loaded, end_s if gone is None else gone, end_s, GREEN if gone is None else AMBER, text)
    last = 0.0
    for moment in moments:
        last = moment.time_s if moment.time_s is not None else end_s if moment.role == "consequence" else last
        if moment.role in MARK and not moment.what.startswith("is unload"):
            colour, marker = MARK[moment.role]
            axes.plot(last, row, marker, color=colour, markersize=11 if moment.role == "cause" else 8, clip_on=False)


def _first(moments: list[Moment], what: str) -> float | None:
    return next((moment.time_s for moment in moments if moment.what == what), None)


def _bar(axes: Axes, row: int, begin_s: float, stop_s: float, end_s: float, colour: str, text: str) -> None:
    axes.barh(row, stop_s - begin_s, left=begin_s, height=0.5, color=colour)
    if stop_s - begin_s > NARROW * len(text) * end_s:
        axes.text((begin_s + stop_s) / 2, row, text, ha="center", va="center", color="white", fontsize=8)
