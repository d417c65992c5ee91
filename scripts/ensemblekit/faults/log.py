# SPDX-License-Identifier: Apache-2.0
"""Triton's log as data: lines, the events of a start, and a form in which two logs can be compared."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Self

__all__ = [
    "ENTRY",
    "FAILED",
    "LOADED",
    "LOADING",
    "LONGEST_LINE",
    "REFUSED",
    "UNLOADED",
    "UNLOADING",
    "EntryReader",
    "LogLine",
    "LogReader",
    "ModelLoad",
    "Printed",
    "dead_process",
    "gave_up",
    "has_lost_lock",
    "is_ending",
    "last_line",
    "missing_library",
    "model_loads",
    "parse_log",
    "poll_errors",
    "read_log",
    "tail",
    "without_controls",
]

# Triton's two formats, and that of gRPC within it, for example
#   E0924 01:19:21.672113 29385 model_repository_manager.cc:1460] "Poll failed for ..."
#   2024-09-24T01:19:21Z E 29385 model_repository_manager.cc:1460] "Poll failed for ..."   (--log-format=ISO8601)
_LINE = re.compile(
    r"(?:([IWEF])(\d{4}) (\d\d:\d\d:\d\d\.\d{6,9})|\d{4}-(\d\d-\d\d)T(\d\d:\d\d:\d\d(?:\.\d+)?)Z ([IWEF]))"
    r" +(\d+) ([\w.-]+\.(?:cc|h|cpp|cu)):(\d+)\] ?(.*)$"
)
ENTRY = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6}|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z [IWEF] +\d+ ")
# what Triton says of a model, by steps
REFUSED = re.compile(r"^Poll failed for model directory '([^']*)': (.*)$", re.DOTALL)
LOADING = re.compile(r"^loading: (.+):(\d+)$")
LOADED = re.compile(r"^successfully loaded '([^']+)'")
UNLOADING = re.compile(r"^unloading: (.+):\d+$")
UNLOADED = re.compile(r"^successfully unloaded '([^']+)'")
FAILED = re.compile(r"^failed to load '([^']+)' version -?\d+: (.*)$", re.DOTALL)
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
# what a terminal would obey, or would show in another order: all but tabs and line ends
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# the dynamic linker's words, of the server itself or of the stub of a Python model
_LIBRARY = re.compile(r"^(\S+): error while loading shared libraries: ([^:\s]+): ", re.MULTILINE)
STUB_NAME = "triton_python_backend_stub"
# the reaper's words of a Python model's process, of which Triton says nothing
_DEAD = re.compile(r"ensemblekit: (the process of .+ ended \(.+\));")
# vLLM's words, in two generations, once its engine has served; of this Triton says nothing either
_DEAD_ENGINE = re.compile(
    r"^(?:\(\w+ pid=\d+\) )?(?:WARNING|ERROR) [\d-]+ [\d:]+ \[\S*core_client\.py:\d+\] "
    r"(?:\[shutdown\] MPClient: )?[Ee]ngine core .*(?:exited|died) unexpectedly",
    re.MULTILINE,
)
# vLLM's words while it loads, which Triton repeats some seconds later, when it has ended the model's own process
_KILLED_ENGINE = re.compile(
    r'pb_stub\.cc:\d+\] "?Failed to initialize Python stub: .*Failed core proc\(s\): \{[^}]*\': -(4|6|7|9|11)\b'
)
# what Triton says when it ends, a failed start too: first that it begins to, then that it unloads
_ENDING = ("Waiting for in-flight requests to complete", "All models are stopped, unloading models")
# of a model's process that Triton gave up: what the reaper says, and how the server ends when that process held a lock
_IN_VAIN = re.compile(r"^ensemblekit: Triton waits in vain for the end of the process of model (\S+): ended$", re.M)
_LOST_LOCK = "terminate called after throwing an instance of 'boost::interprocess::lock_exception'"
LONGEST_MESSAGE = 400  # lines of one quoted message; a traceback through a framework has about 100
DAYS_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
LONGEST_LINE = 64 * 1024  # bytes; what is longer is cut into pieces
LONGEST_READ = 16 * 1024 * 1024  # bytes of one look
LAST_LINE_BYTES = 4096  # holds a last line
TAIL_LINES = 50  # enough for the server's option table and the lines before it


@dataclass(frozen=True, slots=True)
class LogLine:
    """One entry of a Triton log; `time_s` counts from the first entry of the log, `number` is the line's, from 1."""

    level: str
    time_s: float
    pid: int
    file: str
    line: int
    message: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Printed:
    """A line of a log that is no entry of Triton's: a model's print, a table's row, a banner."""

    text: str
    number: int


@dataclass(frozen=True)
class ModelLoad:
    """What the log says of one model: when it began to load, was loaded, unloaded, or why it failed (s)."""

    model: str
    loading_s: float
    loaded_s: float | None = None
    unloaded_s: float | None = None
    failure: str | None = None


def without_controls(text: str) -> str:
    r"""Return a text without colours and other characters that a terminal would obey.

    >>> without_controls("\x1b[31mred\x1b[0m\x07")
    'red'
    """
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    return text if text.isprintable() else _CONTROLS.sub("", text)


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


class LogReader:
    """Reads a log that is being written, each time from where the last look ended; a `with` closes it.

    A log that was cut or replaced by a new one (rotation, a restart) is read from its beginning.
    """

    def __init__(self, path: Path) -> None:
        """Begin at the beginning of the file, which need not be there yet."""
        self.path = path
        self._file: IO[bytes] | None = None
        self._rest = b""

    def read_new(self) -> list[str]:
        """Return the lines that were completed since the last look, without colours; none if the file is absent.

        Raises:
            OSError: The file is there but cannot be read.
        """
        lines = self._take()
        if not lines and self._replaced():
            self.close()
            lines = self._take()
        return lines

    def _take(self) -> list[str]:
        if self._file is None:
            try:
                self._file = self.path.open("rb")
            except FileNotFoundError:
                return []
        lines = (self._rest + self._file.read(LONGEST_READ)).split(b"\n")
        # a file without line ends is no trap
        self._rest = lines.pop() if len(lines[-1]) < LONGEST_LINE else b""
        return [_ANSI.sub("", line.decode(errors="replace")) for line in lines]

    def _replaced(self) -> bool:
        if self._file is None:
            return False
        try:
            now = self.path.stat()
        except OSError:
            return False  # between an old file and a new one
        mine = os.fstat(self._file.fileno())
        return (now.st_ino, now.st_dev) != (mine.st_ino, mine.st_dev) or now.st_size < self._file.tell()

    def close(self) -> None:
        """Close the file; the next look begins anew."""
        if self._file is not None:
            self._file.close()
        self._file, self._rest = None, b""

    def __enter__(self) -> Self:
        """Read for as long as the block runs."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the file."""
        self.close()


def last_line(path: Path) -> str:
    """Return the last line of a log that says something, empty without one; such a log may be long.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_LINE_BYTES))
        lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def parse_log(text: str) -> tuple[LogLine, ...]:
    r"""Return the entries of a log in order; what a model printed by itself is no entry.

    A line that is no entry continues the one before it when it belongs to a quoted message.

    >>> line = parse_log("E1124 01:19:21.672113 29385 server.cc:1] \"no\"")[0]
    >>> line.level, line.file, line.message
    ('E', 'server.cc', 'no')
    """
    reader = EntryReader()
    items = [item for number, raw in enumerate(text.splitlines(), 1) for item in reader.push(raw, number)]
    return tuple(item for item in (*items, *reader.flush()) if isinstance(item, LogLine))


class EntryReader:
    """Puts entries together from lines that come one by one."""

    def __init__(self) -> None:
        """Begin with nothing held."""
        self._start_s: float | None = None
        self._held: LogLine | None = None  # a quoted message that goes on in the next line

    @property
    def holds(self) -> bool:
        """Whether an entry waits for its next line."""
        return self._held is not None

    def push(self, raw: str, number: int) -> Iterator[LogLine | Printed]:
        """Take a line and yield what is complete now."""
        match = _LINE.match(raw) or (_LINE.search(raw) if "] " in raw and ":" in raw else None)
        if match is None:
            if self._held is None:
                yield Printed(raw, number)
                return
            message = f"{self._held.message}\n{raw}"
            self._held = replace(self._held, message=message)
            over = not message.startswith('"') or number - self._held.number > LONGEST_MESSAGE
            if raw.endswith('"') or over:
                yield from self.flush()
            return
        yield from self.flush()
        if match.start():
            yield Printed(raw[: match.start()], number)
        when = _seconds(match[2] or match[4], match[3] or match[5])
        self._start_s = when if self._start_s is None else self._start_s
        message = match[10]
        level = match[1] or match[6]
        goes_on = message.startswith('"') and not (len(message) > 1 and message.endswith('"'))
        # to 24.05 messages are not quoted: of an error that ends with a colon the reason stands in the next line
        goes_on = goes_on or (level == "E" and message.rstrip().endswith(":"))
        entry = LogLine(
            level=level,
            time_s=when - self._start_s,
            pid=int(match[7]),
            file=match[8],
            line=int(match[9]),
            message=message if goes_on else _unquote(message),
            number=number,
        )
        if goes_on:
            self._held = entry
        else:
            yield entry

    def flush(self) -> Iterator[LogLine]:
        """Yield the entry that is held, if there is one: nothing will complete it."""
        held, self._held = self._held, None
        if held is not None:
            yield replace(held, message=_unquote(held.message))


def _seconds(day: str, clock: str) -> float:
    """Return the seconds since the year began, of a leap year: the log's own year may have a 29th of February."""
    return _day_s(day) + int(clock[:2]) * 3600 + int(clock[3:5]) * 60 + float(clock[6:])


@lru_cache(maxsize=8)
def _day_s(day: str) -> int:
    month, date = int(day[:2]), int(day[-2:])
    return (sum(DAYS_OF_MONTH[: month - 1]) + date - 1) * 86400


def _unquote(message: str) -> str:
    return message.removeprefix('"').removesuffix('"')


def poll_errors(lines: Iterable[LogLine]) -> tuple[str, ...]:
    """Return the messages about model directories that the server refused when it read their configs."""
    return tuple(line.message for line in lines if REFUSED.match(line.message))


def model_loads(lines: Iterable[LogLine]) -> tuple[ModelLoad, ...]:
    """Return what happened to each model that began to load, in the order in which they began."""
    loads: dict[str, ModelLoad] = {}
    for line in lines:
        if match := LOADING.match(line.message):
            loads[match[1]] = ModelLoad(match[1], line.time_s)
        elif (match := LOADED.match(line.message)) and match[1] in loads:
            loads[match[1]] = ModelLoad(match[1], loads[match[1]].loading_s, line.time_s)
        elif (match := UNLOADED.match(line.message)) and match[1] in loads:
            loads[match[1]] = replace(loads[match[1]], unloaded_s=line.time_s)
        elif (match := FAILED.match(line.message)) and match[1] in loads:
            loads[match[1]] = replace(loads[match[1]], failure=match[2])
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


def dead_process(text: str) -> str | None:
    """Return what the reaper or vLLM says of a process that died without which a model cannot answer, None if none did.

    >>> dead_process("ensemblekit: the process of model llm ended (signal 9); Triton does not notice")
    'the process of model llm ended (signal 9)'
    """
    if match := _DEAD.search(text):
        return match[1]
    if match := _KILLED_ENGINE.search(text):
        return f"the process of vLLM's engine (EngineCore) ended (signal {match[1]})"
    return "the process of vLLM's engine (EngineCore) ended" if _DEAD_ENGINE.search(text) else None


def is_ending(text: str) -> bool:
    """Return whether the server had begun to end when the log stopped."""
    return any(words in text for words in _ENDING)


def gave_up(text: str) -> bool:
    r"""Return whether a load failed because Triton gave up a process that lived, and that the reaper ended.

    >>> line = "ensemblekit: Triton waits in vain for the end of the process of model llm: ended"
    >>> gave_up(f"{line}\nStub process 'llm_0_0' is not healthy."), gave_up(line)
    (True, False)
    """
    return any(f"Stub process '{match[1]}_" in text[match.end() :] for match in _IN_VAIN.finditer(text))


def has_lost_lock(text: str) -> bool:
    """Return whether the server ended by a lock that the process of a model held when it died."""
    return _LOST_LOCK in text
