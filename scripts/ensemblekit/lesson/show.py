# SPDX-License-Identifier: Apache-2.0
"""What readers see besides values: checks, which nbval compares, and what no checked output holds: lines, tables."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import Any, Self

import ipywidgets as widgets
from IPython.core.getipython import get_ipython
from IPython.core.pylabtools import print_figure, select_figure_formats
from IPython.display import DisplayHandle, Markdown, display
from matplotlib.figure import Figure

from ensemblekit.errors import CheckFailed
from ensemblekit.paths import BATCH_VARIABLE

__all__ = [
    "StatusLine",
    "alternative_text",
    "as_text",
    "check",
    "quick_banner",
    "show_figures_in_kernel",
    "show_lines",
    "table",
]

SCRIPT_LINK = re.compile(
    r"\]\((?!https?://|[\w./#-]*\))"
)  # links of Markdown that lead neither to the web nor to a file
REFRESH_S = 0.5  # a progress line need not move faster than a reader's eye


def check(sentence: str, holds: bool, *, found: object = None) -> None:
    """Print `ok: <sentence>` if it holds: plain words, without numbers that vary.

    Raises:
        CheckFailed: It does not hold.
        TypeError: `holds` is no bool, so that the check would check nothing.

    >>> check("two and two make four", 2 + 2 == 4)
    ok: two and two make four
    """
    if not isinstance(holds, bool):
        raise TypeError(f"check() needs a bool, got {type(holds).__name__}: compare the value with what it should be")
    if not holds:
        raise CheckFailed(
            f"confirm that {sentence}",
            found="the opposite" if found is None else str(found),
            hint="read the cells above from the last one that looks right; the server's log is in this run's folder",
        )
    print(f"ok: {sentence}")


class StatusLine:
    """One line that says what is under way and for how long; it is gone when the work is done.

    Shown in a live notebook and on a terminal. Batch runs show none, so that executed pages hold no
    volatile text.
    """

    def __init__(self, what: str) -> None:
        """Name the work."""
        self.what, self.begin_s, self.last_s = what, time.monotonic(), 0.0
        self._handle: DisplayHandle | None = None
        self._on_terminal = False

    def tick(self, detail: str = "") -> None:
        """Show the line, at most twice a second."""
        now = time.monotonic()
        if now - self.last_s < REFRESH_S or os.environ.get(BATCH_VARIABLE):
            return
        self.last_s = now
        text = " ".join(filter(None, [f"{self.what} … {now - self.begin_s:.0f} s", detail]))
        if sys.stderr.isatty():
            self._on_terminal = True
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        elif get_ipython() is not None:
            shown = Markdown(as_text(text))
            if self._handle is None:
                self._handle = display(shown, display_id=True)
            else:
                self._handle.update(shown)

    __call__ = tick

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Take the line away."""
        if self._on_terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        if self._handle is not None:
            self._handle.update(Markdown(""))


def quick_banner() -> str:
    """Return the banner of every page of a quick run, as Markdown."""
    installed = find_spec("vllm") is not None  # a quick run may take place in a full environment too
    return (
        "> **Quick mode.** The model called `llm` on this page is a small Python stand-in. No vLLM, no PyTorch and no "
        f"weights were {'run for it' if installed else 'installed, fetched or run'}. Triton is real, and so is "
        "everything about the ensemble."
    )


def stop_button(stop: Callable[[], None]) -> widgets.HBox:
    """Return a line that says how long a lesson's server stays, with a button that stops it now."""
    button = widgets.Button(description="Stop", tooltip="Stop this lesson's server")
    words = widgets.HTML("The server stays for the cells above, until another lesson starts one or this kernel ends.")

    def on_click(_button: widgets.Button) -> None:
        button.disabled = True
        stop()
        words.value = "The server is stopped. The cell that starts it brings it back."

    button.on_click(on_click)
    return widgets.HBox([button, words])


def show_figures_in_kernel() -> None:
    """Let this kernel show figures that were made without pyplot, with their alternative text."""
    shell = get_ipython()
    if shell is not None:
        select_figure_formats(shell, {"png"})  # has matplotlib's defaults for everything but the text
        shell.display_formatter.formatters["image/png"].for_type(Figure, _png_with_text)


def _png_with_text(figure: Figure) -> tuple[Any, dict[str, str]]:
    return print_figure(figure, fmt="png", base64=True), {"alt": alternative_text(figure)}


def alternative_text(figure: Figure) -> str:
    """Return what a figure shows in words: its label, else its titles."""
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    return str(figure.get_label()) or "; ".join(filter(None, titles))


def table(rows: Iterable[Sequence[object]], header: Sequence[str]) -> Markdown:
    r"""Return rows as a Markdown table; HTML and links to scripts in a cell stay text.

    >>> print(table([("a", 1)], ("name", "value")).data)
    | name | value |
    | --- | --- |
    | a | 1 |
    >>> print(table([("<b>", "[x](javascript:f())")], ("name", "value")).data.splitlines()[-1])
    | &lt;b> | [x]\(javascript:f()) |
    """
    lines = [header, ["---"] * len(header), *rows]
    cells = ([as_text(cell) for cell in line] for line in lines)
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in cells))


def as_text(cell: object) -> str:
    r"""Return what came from outside so that Markdown takes it for text: no HTML, no link to a script, one cell.

    >>> as_text("<script>")
    '&lt;script>'
    """
    text = SCRIPT_LINK.sub(r"]\(", str(cell).replace("<", "&lt;"))
    return text.replace("|", "\\|").replace("\n", "<br>")


def show_lines(lines: Iterable[str]) -> None:
    """Print lines, one a row."""
    print("\n".join(lines))
