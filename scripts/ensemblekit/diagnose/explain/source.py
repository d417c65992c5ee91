# SPDX-License-Identifier: Apache-2.0
"""The lines of a log as Triton wrote them: from a file or a pipe, without what keeping or pasting put around them."""

import html
import io
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ensemblekit.errors import ParameterError
from ensemblekit.faults.log import ENTRY, LONGEST_LINE, LogReader, without_controls

__all__ = ["LineCleaner", "follow_lines", "lines_of", "open_log"]

FOLLOW_POLL_S = 0.2
BOMS = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}  # PowerShell's `docker logs x > file`
WHERE_ENTRIES_BEGIN = 300  # characters that may stand before an entry on its line
DOCKER_SPLITS_AT = 16 * 1024  # bytes of a line, in docker's json files
TIMES_SEEN = 3  # before entries, until a prefix of a shape that is not listed is taken for one
_STAMP = r"\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d| UTC)?"
_CRI = re.compile(rf"{_STAMP} (?:stdout|stderr) ([FP]) ")
# What stands before a line. Each is taken away only after it was seen before an entry of Triton's: a model may print
# what looks like one.
PREFIXES = (
    re.compile(r"[\w.@-]+ +\| "),  # docker compose, swarm
    _CRI,  # the files of Kubernetes' nodes
    re.compile(rf"\"{_STAMP}\",\""),  # exports as CSV
    re.compile(rf"\[?{_STAMP}\]?[ \t,]+\"?"),  # `docker logs -t`, exports as CSV
    re.compile(rf"[A-Z]+ {_STAMP} "),  # Google's log explorer
    re.compile(r"\[[\w./ -]+\] "),  # kubectl logs --prefix
    re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [\w.-]+ [\w./-]+(?:\[\d+\])?: "),  # journald
    re.compile(r"\[\d+,\d+\]<std(?:out|err)>: ?"),  # MPI
    re.compile(r"[a-z][\w.]*(?:-[\w.]+)+ [\w.-]+ (?:\u203a )?"),  # stern: pod, container
    re.compile(r"(?:> ?)+"),  # a quotation in Markdown or a mail
    re.compile(r"(?:[-*+]|\d+[.):|]) +"),  # a list, grep -n
    re.compile(r"\*\*|__|`+|[\"'*_]"),  # bold, code
    re.compile(r"[ \t]+|\d+\t"),  # an indented block, cat -n
)
CLOSING = re.compile(r"(?:\*\*|__|`+|[*_])\s*$")
# where the text stands in a line of docker's json files, of a cloud's export, of a log collector
TEXT_KEYS = (
    *("log", "message", "msg", "textPayload", "line", "text", "body", "@message", "_raw", "content", "event"),
    *("jsonPayload", "attributes", "fields", "result"),
)
_PRETTY = re.compile(rf"\s*\"(?:{'|'.join(TEXT_KEYS)})\"\s*: (\"(?:[^\"\\]|\\.)*\"),?\s*$")
_CURLY_QUOTES = str.maketrans({0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'"})


class LineCleaner:
    """Takes wrappings, prefixes and colours from lines; learns from Triton's entries which of them the log has.

    Attributes:
        begun: The first part of a line that was split.
    """

    def __init__(self) -> None:
        """Know no form yet."""
        self._known: list[re.Pattern[str]] = []
        self._shapes = Counter[str]()
        self._json = self._pretty = False
        self.begun = ""

    def __call__(self, raw: str) -> list[str]:
        """Return what a line of the file holds: one line mostly, none or several of one that is wrapped."""
        if raw.lstrip(" \t,[").startswith(("{", '"')) or self._pretty:
            unwrapped = self._unwrap(raw)
            if unwrapped is not None:
                return [line for each in unwrapped.splitlines() for line in self._clean(each)]
        return [line for each in raw.rstrip("\r\n").split("\r") for line in self._clean(each)]

    @staticmethod
    def holds_entry(raw: str) -> bool:
        """Return whether an entry of Triton's stands in a line, whatever is around it."""
        return ENTRY.search(raw, 0, WHERE_ENTRIES_BEGIN) is not None

    def learn(self, lines: list[str]) -> bool:
        """Look at lines before their turn, of which the last holds an entry, and return whether their form is known."""
        self(lines[-1])
        self.begun = ""
        for shape in self._shapes:
            if not self._known and sum(bool(re.match(shape, line)) for line in lines) >= TIMES_SEEN:
                self._known = [re.compile(shape)]
        return bool(self._known) or not self._shapes

    def _clean(self, line: str) -> list[str]:
        line = without_controls(line)
        if "&" in line and re.search(r"&(?:quot|#3[49]|lt|gt|amp);", line):
            line = html.unescape(line)
        match = ENTRY.search(line, 0, WHERE_ENTRIES_BEGIN)
        if match and match.start():
            self._learn(line[: match.start()])
        line, whole = self._strip(line)
        if not whole:
            self.begun += line
            return []
        line, self.begun = self.begun + line, ""
        return [line if line.isascii() else line.translate(_CURLY_QUOTES)]

    def _strip(self, line: str) -> tuple[str, bool]:
        """Return a line without its prefixes, and whether it ends here."""
        whole = True
        for pattern in self._known:
            found = None if ENTRY.match(line) else pattern.match(line)  # an entry of ISO 8601 begins with a time too
            if found:
                line = line[found.end() :]
                whole = pattern is not _CRI or found[1] == "F"
                if CLOSING.match(found[0]):
                    line = CLOSING.sub("", line)
                if found[0].endswith(',"'):  # CSV writes a quotation mark twice
                    line = line.removesuffix('"').replace('""', '"')
        return line, whole

    def _learn(self, before: str) -> None:
        """Take the text before an entry as prefixes if it is made of them, or came often enough."""
        found, rest = list[re.Pattern[str]](), before
        while rest:
            matches = ((each, each.match(rest)) for each in PREFIXES)
            pattern, match = next(((each, match) for each, match in matches if match), (None, None))
            if pattern is None or match is None:
                break
            found.append(pattern)
            rest = rest[match.end() :]
        if rest:
            shape = re.sub(r"\d+", r"\\d+", re.escape(before))
            self._shapes[shape] += 1
            if self._shapes[shape] < TIMES_SEEN:
                return
            found = [re.compile(shape)]
        self._known = found

    def _unwrap(self, raw: str) -> str | None:
        """Return the text in a line of JSON, empty if it has none, None if the line is taken as it is."""
        line = raw.strip().lstrip("[").rstrip(",]").strip()
        if pretty := _PRETTY.match(raw):
            text = str(json.loads(pretty[1], strict=False))
            self._pretty = self._pretty or self.holds_entry(text)
            return text if self._pretty else None
        if self._pretty:
            return ""
        try:
            value = json.loads(line, strict=False)
        except ValueError:
            return None
        docker = isinstance(value, dict) and {"log", "stream"} <= set(value)
        text = _text_in(value)
        self._json = self._json or docker or self.holds_entry(text)
        if not self._json or not text:
            return None
        if docker and len(text) >= DOCKER_SPLITS_AT and not text.endswith("\n"):
            self.begun += text
            return ""
        return text


def _text_in(value: Any) -> str:
    """Return the text of a log line that a collector wrapped, empty if there is none."""
    if isinstance(value, str) and value.startswith("{"):  # wrapped twice
        with suppress(ValueError):
            return _text_in(json.loads(value, strict=False)) or value
    if not isinstance(value, dict):
        return value if isinstance(value, str) else ""
    return next((text for key in TEXT_KEYS if key in value and (text := _text_in(value[key]))), "")


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

    Raises:
        ParameterError: It cannot be read.
    """
    open_log(path).close()
    with LogReader(path) as reader:
        while True:
            lines = reader.read_new()
            yield from lines
            if not lines:
                time.sleep(FOLLOW_POLL_S)
