# SPDX-License-Identifier: Apache-2.0
"""A build's progress: a live table on a terminal, one line a stage elsewhere."""

from types import TracebackType
from typing import Self

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ensemblekit.workarounds.build_meter import StageRecord
from ensemblekit.workarounds.build_process import percent_of
from ensemblekit.workarounds.build_scripts import STAGES, Stage

__all__ = ["Progress", "meter_table"]

REFRESH_PER_SECOND = 2
STYLE = {"done": "green", "failed": "bold red", "interrupted": "yellow", "running": "cyan", "waiting": "dim"}
DETAIL: dict[Stage, str] = {
    "clone": "the server's source, one branch",
    "dryrun": "build.py writes the scripts",
    "tritonserver_buildbase": "image with compilers, on NVIDIA's py3-min",
    "cmake_build": "compiles core and Python backend in it",
    "artifacts": "copied out of the container",
    "tritonserver": "the image, with vLLM installed",
    "tritonserver_cibase": "upstream's image for tests",
    "probe": "does it know ensembles? then it is named",
}


def meter_table(records: dict[Stage, StageRecord], *, line: str = "") -> Table:
    """Return what each stage took so far.

    Args:
        records: The stages' records.
        line: The log's last line, for how far the running stage says it is.
    """
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("stage", "state", "min", "build GB", "disk GB", ""):
        table.add_column(name, justify="right" if name in ("min", "build GB", "disk GB") else "left", no_wrap=True)
    for stage in STAGES:
        record = records.get(stage, StageRecord())
        percent = percent_of(line) if record.state == "running" else None
        state = f"{percent} %" if percent is not None else record.state
        numbers = (f"{record.minutes:.1f}", f"{record.build_folder_gb:.2f}", f"{record.free_disk_used_gb:+.2f}")
        shown = numbers if record.attempts else ("", "", "")
        table.add_row(stage, f"[{STYLE[record.state]}]{state}", *shown, f"[dim]{escape(DETAIL[stage])}")
    return table


class Progress:
    """Shows a build while it runs; a `Watcher`."""

    def __init__(self, console: Console) -> None:
        """Take the console."""
        self._console, self._records = console, dict[Stage, StageRecord]()
        self._live = Live(console=console, refresh_per_second=REFRESH_PER_SECOND, transient=True)
        self._on_terminal = console.is_terminal

    def skipped(self, stage: Stage, record: StageRecord) -> None:
        """Say that a stage was done before."""
        self._records[stage] = record
        if not self._on_terminal:
            self._say(stage, "done before, not repeated")

    def begun(self, stage: Stage, record: StageRecord) -> None:
        """Say that a stage begins."""
        self._records[stage] = record
        if self._on_terminal:
            self._show("")
        else:
            self._say(stage, f"begins, attempt {record.attempts}")

    def polled(self, stage: Stage, record: StageRecord, line: str) -> None:
        """Show how far the stage is."""
        self._records[stage] = record
        if self._on_terminal:
            self._show(line)

    def ended(self, stage: Stage, record: StageRecord) -> None:
        """Say how a stage ended and what it took."""
        self._records[stage] = record
        if not self._on_terminal:
            size = f"build folder {record.build_folder_gb:.2f} GB, free disk {-record.free_disk_used_gb:+.2f} GB"
            self._say(stage, f"{record.state} after {record.minutes:.1f} min, {size}")

    def _say(self, stage: Stage, text: str) -> None:
        line = f"{STAGES.index(stage) + 1}/{len(STAGES)} {stage}: {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _show(self, line: str) -> None:
        last = Text(line, style="dim", no_wrap=True, overflow="ellipsis")
        self._live.update(Group(meter_table(self._records, line=line), last))

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._on_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the table as it stands at the end."""
        if self._on_terminal:
            self._live.stop()
            self._console.print(meter_table(self._records))
