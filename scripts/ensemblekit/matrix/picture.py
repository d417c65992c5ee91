# SPDX-License-Identifier: Apache-2.0
"""The release matrix as a picture: colour and words say the same, so that it reads without colour too."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ensemblekit.matrix.run import Cell, MatrixResult, State
from ensemblekit.releases import DocumentedRelease

__all__ = ["plot_matrix"]

# Okabe and Ito's green and vermillion stay apart for every kind of colour vision; darker, so that white is readable
STYLE: dict[State, tuple[str, str]] = {
    "answered": ("#00795a", "ensemble answers"),
    "refused": ("#b84d00", "ensemble refused"),
    "failed": ("#5b5f66", "failed"),
    "not run": ("#e4e6ea", "not run"),
}
WIDTH_IN, ROW_IN = 9.0, 0.78
DOCUMENTED_A_ROW, DOCUMENTED_IN = 12, 0.36
DOCUMENTED_TEXT = "Documented only, not run here: the vLLM images after 24.10"
GAP = 0.06


def plot_matrix(result: MatrixResult, documented: Sequence[DocumentedRelease] = ()) -> Figure:
    """Draw a matrix: releases across, flavours down, one block of rows a provider.

    Args:
        result: What was run.
        documented: Releases that were only read about, drawn apart below it.
    """
    releases = list(dict.fromkeys(cell.release for cell in result.cells))
    rows = list(dict.fromkeys((cell.provider, cell.flavour) for cell in result.cells))
    high, lines = 1.15 + ROW_IN * len(rows), -(-len(documented) // DOCUMENTED_A_ROW)
    below = 0.5 + DOCUMENTED_IN * lines if lines else 0.0
    figure = Figure(figsize=(WIDTH_IN, high + below), layout="constrained")
    parts = figure.subfigures(2 if lines else 1, squeeze=False, height_ratios=[high, below] if lines else None)
    axes = parts[0, 0].subplots()
    if lines:
        _draw_documented(parts[1, 0].subplots(), documented, lines)
    for cell in result.cells:
        _draw(axes, releases.index(cell.release), rows.index((cell.provider, cell.flavour)), cell)
    several = len({provider for provider, _ in rows}) > 1
    labels = [f"{flavour}\n{provider}" if several else flavour for provider, flavour in rows]
    axes.set_xticks([column + 0.5 for column in range(len(releases))], [f"Triton {name}" for name in releases])
    axes.set_yticks([row + 0.5 for row in range(len(rows))], labels)
    axes.set_xlim(0, len(releases))
    axes.set_ylim(len(rows), 0)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=10)
    axes.spines[:].set_visible(False)
    axes.set_title(_title(result), loc="left", fontsize=11, fontweight="bold", pad=12)
    return figure


def _draw_documented(axes: Axes, documented: Sequence[DocumentedRelease], lines: int) -> None:
    """Draw the releases that nobody ran here, each in a dashed box that nothing else has."""
    for place, release in enumerate(documented):
        row, column = divmod(place, DOCUMENTED_A_ROW)
        size, style = 1 - 2 * GAP, "round,pad=0,rounding_size=0.05"
        box = FancyBboxPatch((column + GAP, row + GAP), size, size, style, fc="white", ec="#5b5f66", ls="--")
        axes.add_patch(box)
        axes.text(column + 0.5, row + 0.5, release.name, ha="center", va="center", fontsize=9, color="#5b5f66")
    axes.set_xlim(0, DOCUMENTED_A_ROW)
    axes.set_ylim(lines, 0)
    axes.set_axis_off()
    axes.set_title(DOCUMENTED_TEXT, loc="left", fontsize=10)


def _title(result: MatrixResult) -> str:
    odd = len(result.unexpected)
    end = f"{odd} UNEXPECTED" if odd else "all as the release table says"
    return f"Which servers load an ensemble: {len(result.ran)} of {len(result.cells)} cells run, {end}"


def _draw(axes: Axes, column: int, row: int, cell: Cell) -> None:
    odd = cell.verdict == "UNEXPECTED"
    fill, words = STYLE[cell.state]
    edge: dict[str, Any] = {"ec": "black", "lw": 3} if odd else {"ec": "none", "lw": 0}
    style = "round,pad=0,rounding_size=0.05"
    size = 1 - 2 * GAP
    axes.add_patch(FancyBboxPatch((column + GAP, row + GAP), size, size, style, fc=fill, **edge))
    ran = cell.state != "not run"
    seconds = f"{cell.seconds:.1f} s" if ran else ""
    small = "UNEXPECTED" if odd else seconds
    text: dict[str, Any] = {"ha": "center", "va": "center", "color": "white" if ran else "#5b5f66"}
    axes.text(column + 0.5, row + (0.4 if small else 0.5), words, fontsize=10, fontweight="bold", **text)
    axes.text(column + 0.5, row + 0.68, small, fontsize=8.5, **text)
