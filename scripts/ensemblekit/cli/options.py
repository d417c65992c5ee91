# SPDX-License-Identifier: Apache-2.0
"""What several commands share: options declared once, and types that refuse what nothing behind them could use."""

import errno
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemblekit.errors import KitError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from ensemblekit.diagnose.preflight import Row

__all__ = [
    "COUNT",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_UNUSABLE",
    "FOLDER",
    "JSON_OBJECT",
    "PART_SIZE",
    "PATH",
    "PORT",
    "SECONDS",
    "SIZE",
    "WORD",
    "as_json",
    "container_engine",
    "device",
    "disk_error",
    "engine",
    "model",
    "progress_bars",
    "python",
    "release",
    "rows_table",
    "runs_dir",
    "say",
    "shortened",
]

EXIT_FAILED, EXIT_UNUSABLE, EXIT_INTERRUPTED = 1, 2, 130
LONGEST_WAIT_S = 30 * 24 * 3600.0
LONGEST_NAME = 4096  # of a path on Linux; names of images and models are shorter
LARGEST_SIZE = 1 << 60
DISK_HINTS = {
    errno.ENOSPC: "free some disk (`df -h`), or choose another one with --runs-dir or ENSEMBLEKIT_CACHE",
    errno.EDQUOT: "your quota of this disk is used up: free some, or choose another disk",
    errno.EROFS: "this disk is read-only: choose another with --runs-dir or ENSEMBLEKIT_CACHE",
    errno.EACCES: "choose a place that you may use, or ask its owner",
    errno.EPERM: "choose a place that you may use, or ask its owner",
    errno.EMFILE: "too many files are open: `ulimit -n 4096` raises the limit",
}
DEEPEST_JSON = 32  # numpy's largest number of dimensions in a tensor


class _Seconds(click.FloatRange):
    """A time to wait, in seconds: finite, at least 1."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the checked value."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return seconds


class _Path(click.Path):
    """A path that a file can have; whether there is one, the command says."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the checked value."""
        try:
            os.lstat(value)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.fail(f"{shortened(os.fsdecode(value))!r}: {reason}.", param, ctx)
        return super().convert(value, param, ctx)


class _Word(click.ParamType[str]):
    """A name: not empty, in one line."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the checked value."""
        text = str(value)
        if not text.strip() or not text.isprintable():
            self.fail(f"{shortened(text)!r} is no name.", param, ctx)
        if len(text) > LONGEST_NAME:
            self.fail(f"{shortened(text)!r} is longer than {LONGEST_NAME} characters.", param, ctx)
        return text


class _Size(click.ParamType[int]):
    """A number of bytes, such as 62MB or 24GiB."""

    name = "size"

    def __init__(self, smallest: int = 1) -> None:
        self.smallest = smallest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        from pydantic import ByteSize, TypeAdapter, ValidationError

        try:
            size = int(TypeAdapter(ByteSize).validate_python(value))
        except (ValidationError, OverflowError):
            size = 0
        if not self.smallest <= size < LARGEST_SIZE:
            self.fail(f"{shortened(str(value))!r} is no size such as 62MB or 24GiB.", param, ctx)
        return size


class _JsonObject(click.ParamType[dict[str, Any]]):
    """Values by name, as JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Return the checked value."""
        if isinstance(value, dict):
            return value
        try:
            values = json.loads(value)
        except (ValueError, RecursionError) as error:
            self.fail(f"{shortened(value)!r} is no JSON: {error}.", param, ctx)
        if not isinstance(values, dict):
            self.fail(f"{shortened(value)!r} is no object such as " + '{"TEXT": "Hi"}.', param, ctx)
        if _depth(values) > DEEPEST_JSON:
            self.fail(f"{shortened(value)!r} is nested deeper than a tensor can be.", param, ctx)
        return values


def shortened(text: str, length: int = 80) -> str:
    """Return a text whose middle is left out if it is long.

    >>> shortened("a" * 50 + "b" * 50, 11)
    'aaaa...bbbb'
    """
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"


def disk_error(error: OSError) -> KitError:
    """Return what an error of the operating system says to a reader."""
    place = shortened(str(error.filename), 200) if error.filename else "a file"
    hint = DISK_HINTS.get(error.errno or 0, "look at that path: whether it is there, and of the kind that is needed")
    return KitError(f"use {place}", found=error.strerror or str(error) or type(error).__name__, hint=hint)


def rows_table(rows: Iterable["Row"], title: str = "") -> "Table":
    """Return findings about this machine as a table; what is missing has its fix beside it."""
    from rich.box import SIMPLE
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), title=title or None)
    for name in ("", "needs", "found", "fix, or what it costs"):
        table.add_column(name, no_wrap=not name, overflow="fold")
    for row in rows:
        lacking = "[red]missing" if row.required else "[yellow]less"
        fix = "" if row.fine else escape(row.without)
        table.add_row("[green]ok" if row.fine else lacking, row.name, escape(row.found), fix)
    return table


def say(console: "Console", *lines: str) -> None:
    """Print lines as they are: a path or a name may look like markup, and is never broken."""
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def progress_bars(console: "Console") -> "Progress":
    """Return bars for a terminal; elsewhere they show nothing."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _depth(values: Any) -> int:
    """Return how deep lists and objects are nested, without recursion."""
    depth, level = 0, [values]
    while level:
        depth += 1
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for values in inner for value in values]
    return depth


COUNT = click.IntRange(1)
SECONDS = _Seconds(min=1, max=LONGEST_WAIT_S)
PATH = _Path(path_type=Path)
FOLDER = _Path(path_type=Path, file_okay=False)
PROGRAM = _Path(path_type=Path, exists=True)
WORD = _Word()
SIZE = _Size()
PART_SIZE = _Size(10_000)  # below it the number of files explodes
PORT = click.IntRange(1, 65533)  # the two after it are wanted too
JSON_OBJECT = _JsonObject()

release = click.option("--release", type=WORD, default="24.08", help="Which Triton.")
engine = click.option("--engine", type=WORD, default="vllm", help="vllm, or stand-in: Python-only models.")
device = click.option("--device", type=WORD, default="auto", help="auto, cpu or cuda.")
model = click.option(
    "--model", type=WORD, default="smollm2-135m-instruct", help="The pinned model, a checkpoint folder, or a hub id."
)
container_engine = click.option(
    "--container-engine", type=WORD, help="For PROVIDER container: docker or podman; found by itself if left out."
)
runs_dir = click.option("--runs-dir", type=FOLDER, help="Where the runs are (default: runs/ of the checkout).")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
python = click.option("--python", type=PROGRAM, help="The interpreter, or its environment, of the Python models.")
