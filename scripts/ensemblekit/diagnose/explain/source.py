# SPDX-License-Identifier: Apache-2.0
"""The lines of a log as Triton wrote them: from a file or a pipe, without colours and a container engine's prefixes."""

import io
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ensemblekit.errors import ParameterError

__all__ = ["Stripper", "follow_lines", "lines_of", "open_log"]

LONGEST_LINE = 64 * 1024  # bytes; what is longer is cut into pieces, so that a file without line ends is no trap
FOLLOW_POLL_S = 0.2
BOMS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}  # PowerShell's `docker logs x > file`
_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_STAMP = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"
# What stands before a line: docker compose, `docker logs -t`, the files of Kubernetes' nodes, `kubectl logs
# --prefix`, journald, MPI. Each is taken away only after it was seen before an entry of Triton's: a model may
# print what looks like one.
PREFIXES = (
    re.compile(r"[\w.-]+ +\| "),
    re.compile(rf"{_STAMP} (?:stdout|stderr) [FP] "),
    re.compile(rf"{_STAMP} "),
    re.compile(r"\[[\w./-]+\] "),
    re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [\w.-]+ [\w./-]+(?:\[\d+\])?: "),
    re.compile(r"\[\d+,\d+\]<std(?:out|err)>: ?"),
)
_ENTRY = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6}|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [IWEF] +\d+ ")


class Stripper:
    """Takes colours and prefixes from lines; learns from the entries of Triton which prefixes the log has."""

    def __init__(self) -> None:
        """Know no prefix yet."""
        self._known: list[re.Pattern[str]] = []

    def __call__(self, line: str) -> str:
        """Return the line without them."""
        if "\x1b" in line:
            line = _ANSI.sub("", line)
        if line.startswith('{"log":"'):
            line = _unwrapped(line)
        line = line.rstrip("\r\n")
        match = _ENTRY.search(line, 0, 300)
        if match and match.start():
            self._learn(line[: match.start()])
        for pattern in self._known:
            if found := pattern.match(line):
                # a line of ISO 8601 entries begins with a time as well
                line = line if _ENTRY.match(line) else line[found.end() :]
        return line

    def _learn(self, before: str) -> None:
        """Take the text before an entry as prefixes if it is wholly made of them."""
        found = list[re.Pattern[str]]()
        while before:
            pattern = next((each for each in PREFIXES if each.match(before)), None)
            if pattern is None:
                return
            found.append(pattern)
            match = pattern.match(before)
            before = before[match.end() :] if match else ""
        self._known = found


def _unwrapped(line: str) -> str:
    """Return the text of a line of docker's own json files."""
    try:
        return str(json.loads(line)["log"])
    except (ValueError, KeyError, TypeError):
        return line


def open_log(path: Path) -> IO[bytes]:
    """Return a log opened for reading.

    Raises:
        ParameterError: It is not there, a folder, or may not be read.
    """
    try:
        return path.open("rb")
    except IsADirectoryError as error:
        raise ParameterError(
            f"read the log {path}", found="a folder", hint="give the file that tritonserver's output went to"
        ) from error
    except OSError as error:
        raise ParameterError(
            f"read the log {path}",
            found=error.strerror or str(error),
            hint="give a file, or `-` to read from a pipe: `docker logs CONTAINER 2>&1 | ensemblekit explain -`",
        ) from error


def lines_of(file: IO[bytes]) -> Iterator[str]:
    """Yield the lines of a log, whatever bytes are in it, without reading it as a whole."""
    start = file.read(2)
    if start in BOMS:
        for line in io.TextIOWrapper(file, encoding=BOMS[start], errors="replace"):
            yield line.rstrip("\n")
        return
    rest = start + file.readline(LONGEST_LINE)
    while rest:
        # two bytes may hold a line's end
        yield from rest.decode(errors="replace").removesuffix("\n").split("\n")
        rest = file.readline(LONGEST_LINE)


def follow_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a log for as long as it is written, without an end.

    A log that was cut or replaced by a new one (rotation, a restart) is read from its beginning.

    Raises:
        ParameterError: It cannot be read.
    """
    file, rest = open_log(path), b""
    try:
        while True:
            chunk = file.readline(LONGEST_LINE)
            rest += chunk
            if rest.endswith(b"\n") or len(rest) >= LONGEST_LINE:
                yield rest.decode(errors="replace").removesuffix("\n")
                rest = b""
            elif not chunk:
                time.sleep(FOLLOW_POLL_S)
                if _replaced(file, path):
                    file.close()
                    file, rest = open_log(path), b""
    finally:
        file.close()


def _replaced(file: IO[bytes], path: Path) -> bool:
    try:
        now = path.stat()
    except OSError:
        return False  # between an old file and a new one
    mine = os.fstat(file.fileno())
    return (now.st_ino, now.st_dev) != (mine.st_ino, mine.st_dev) or now.st_size < file.tell()
