# SPDX-License-Identifier: Apache-2.0
"""Triton's log as data: lines, the events of a start, and a form in which two logs can be compared."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

__all__ = [
    "LogLine",
    "ModelLoad",
    "missing_library",
    "model_loads",
    "normalise",
    "parse_log",
    "poll_errors",
    "read_log",
    "tail",
]

# e.g. E0924 01:19:21.672113 29385 model_repository_manager.cc:1460] "Poll failed for ..."
_LINE = re.compile(r"^([IWEF])(\d{4} \d\d:\d\d:\d\d\.\d{6}) +(\d+) ([\w.]+\.(?:cc|h|cpp)):(\d+)\] (.*)$")
_POLL = re.compile(r"^Poll failed for model directory '([^']*)': (.*)$")
_LOADING = re.compile(r"^loading: (.+):(\d+)$")
_LOADED = re.compile(r"^successfully loaded '([^']+)'")
_UNLOADED = re.compile(r"^successfully unloaded '([^']+)'")
_FAILED = re.compile(r"^failed to load '([^']+)' version \d+: (.*)$", re.DOTALL)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# the dynamic linker's words, of the server itself or of the stub of a Python model
_LIBRARY = re.compile(r"^(\S+): error while loading shared libraries: ([^:\s]+): ", re.MULTILINE)
STUB_NAME = "triton_python_backend_stub"
TAIL_LINES = 50  # enough for the server's option table and the lines before it


@dataclass(frozen=True)
class LogLine:
    """One entry of a Triton log; `time_s` counts from the first entry of the log."""

    level: str
    time_s: float
    pid: int
    file: str
    line: int
    message: str


@dataclass(frozen=True)
class ModelLoad:
    """What the log says of one model: when it began to load, was loaded, unloaded, or why it failed (s)."""

    model: str
    loading_s: float
    loaded_s: float | None = None
    unloaded_s: float | None = None
    failure: str | None = None


def read_log(path: Path) -> str:
    """Return a log's text; bytes that are not UTF-8 are replaced, a missing file is an empty log.

    Raises:
        OSError: The file is there but cannot be read.
    """
    return _ANSI.sub("", path.read_text(errors="replace")) if path.exists() else ""


def tail(path: Path, lines: int = TAIL_LINES) -> tuple[str, ...]:
    """Return the last lines of a log.

    Raises:
        OSError: The file is there but cannot be read.
    """
    return tuple(read_log(path).splitlines()[-lines:])


def parse_log(text: str) -> tuple[LogLine, ...]:
    r"""Return the entries of a log in order; what a model printed by itself is no entry.

    A line that is no entry continues the one before it when it belongs to a quoted message or a table.

    >>> line = parse_log("E1124 01:19:21.672113 29385 server.cc:1] \"no\"")[0]
    >>> line.level, line.file, line.message
    ('E', 'server.cc', 'no')
    """
    entries: list[LogLine] = []
    start: datetime | None = None
    open_quote = False
    for raw in text.splitlines():
        match = _LINE.match(raw)
        if match:
            level, stamp, pid, file, number, message = match.groups()
            when = datetime.strptime(f"2024{stamp}", "%Y%m%d %H:%M:%S.%f")  # a leap year: 0229 is a date
            start = start or when
            open_quote = message.startswith('"') and not (len(message) > 1 and message.endswith('"'))
            entries.append(
                LogLine(level, (when - start).total_seconds(), int(pid), file, int(number), _unquote(message))
            )
        elif entries and open_quote:
            last = entries[-1]
            open_quote = not raw.endswith('"')
            entries[-1] = LogLine(
                last.level, last.time_s, last.pid, last.file, last.line, _unquote(f"{last.message}\n{raw}")
            )
    return tuple(entries)


def _unquote(message: str) -> str:
    return message.removeprefix('"').removesuffix('"')


def poll_errors(lines: Iterable[LogLine]) -> tuple[str, ...]:
    """Return the messages about model directories that the server refused when it read their configs."""
    return tuple(line.message for line in lines if _POLL.match(line.message))


def model_loads(lines: Iterable[LogLine]) -> tuple[ModelLoad, ...]:
    """Return what happened to each model that began to load, in the order in which they began."""
    loads: dict[str, ModelLoad] = {}
    for line in lines:
        if match := _LOADING.match(line.message):
            loads[match[1]] = ModelLoad(match[1], line.time_s)
        elif (match := _LOADED.match(line.message)) and match[1] in loads:
            loads[match[1]] = ModelLoad(match[1], loads[match[1]].loading_s, line.time_s)
        elif (match := _UNLOADED.match(line.message)) and match[1] in loads:
            old = loads[match[1]]
            loads[match[1]] = ModelLoad(match[1], old.loading_s, old.loaded_s, line.time_s, old.failure)
        elif (match := _FAILED.match(line.message)) and match[1] in loads:
            old = loads[match[1]]
            loads[match[1]] = ModelLoad(match[1], old.loading_s, old.loaded_s, old.unloaded_s, match[2])
    return tuple(loads.values())


def missing_library(text: str) -> str | None:
    """Return the shared library without which a process of the log could not start, None if all started.

    >>> missing_library("stub: error while loading shared libraries: libb64.so.0: cannot open")
    'libb64.so.0'
    """
    match = _LIBRARY.search(text)
    return match[2] if match else None


def stub_without_library(text: str) -> bool:
    """Return whether a model's process could not start for want of a library: Triton waits for it without limit."""
    return any(match[1].endswith(STUB_NAME) for match in _LIBRARY.finditer(text))


_NORMAL = (
    (re.compile(r"^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ ", re.MULTILINE), r"\1 "),
    (re.compile(r"\b(127\.0\.0\.1|0\.0\.0\.0|localhost):\d+"), r"\1:PORT"),
    (re.compile(r"(model_repository_path\[\d+\]\s*\| )\S+"), r"\1/models"),
    (re.compile(r"/[^\s\"|]*?/backends(?=[/\"])"), "/opt/tritonserver/backends"),
    (re.compile(r"Timeout \d+: Found (\d+) (live models|model versions)"), r"Timeout N: Found \1 \2"),
    (re.compile(r"[-+]{4,}"), "----"),
    (re.compile(r" {2,}"), " "),
)


def normalise(text: str) -> str:
    """Return a log without what differs from run to run: times, pids, ports, folders, the width of tables."""
    for pattern, replacement in _NORMAL:
        text = pattern.sub(replacement, text)
    return text
