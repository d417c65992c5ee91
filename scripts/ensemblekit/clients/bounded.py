# SPDX-License-Identifier: Apache-2.0
"""Questions to an HTTP server that nobody vouches for: their time and their bytes end, whatever it answers.

No redirect is followed and nothing is unpacked: a few bytes of gzip can stand for gigabytes.
"""

import contextlib
import http.client
import io
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ensemblekit.errors import RequestError
from ensemblekit.faults.log import without_controls

__all__ = ["Asker", "Reply"]

LONGEST_ANSWER = 16 * 2**20  # bytes; the index of 20 000 models has 2 MiB
EXCERPT = 200  # characters of an answer, or of what is wrong with it
T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """What a server answered, as it came."""

    url: str
    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The body for a reader."""
        return without_controls(self.body.decode(errors="replace")).strip()

    @property
    def excerpt(self) -> str:
        """Status and the begin of the body."""
        text = without_controls(self.body[: 4 * EXCERPT].decode(errors="replace")).strip()
        return f"HTTP {self.status} {text[:EXCERPT]}".strip()

    def read(self, kind: type[T]) -> T:
        """Return the body as what it should be, a pydantic model or a type such as `dict[str, str]`.

        Raises:
            RequestError: It is something else.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(kind).validate_json(self.body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = without_controls(".".join(map(str, first["loc"])))[:EXCERPT]
            found = f"{place}{': ' if place else ''}{first['msg']} in {self.excerpt}"
            raise _refused(self.url, found) from error


class Asker:
    """A server at a URL that is asked one or more questions; all of them together have one time."""

    def __init__(self, url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> None:
        """Nothing is sent yet.

        Args:
            url: `http://host:port`, `https://host`, or without the scheme.
            timeout_s: Seconds for all questions together.
            headers: Sent with each question.
        """
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.timeout_s = timeout_s
        self._headers = dict(headers or {})
        self._deadline = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds that are left, at least a thousandth."""
        return max(self._deadline - time.monotonic(), 1e-3)

    def ask(self, path: str, body: Any = None) -> Reply:
        """Return the answer to a GET, or to a POST of a body as JSON, whatever its status.

        Raises:
            RequestError: No whole answer came in time, it was too long, or it was no HTTP.
        """
        try:
            return self._ask(path, body)
        except TimeoutError:
            found = f"no whole answer within {self.timeout_s:g} s"
        except (OSError, ValueError, http.client.HTTPException) as error:
            found = without_controls(f"{type(error).__name__}: {error}")[:EXCERPT]
        raise _refused(f"{self.url}{path}", found)

    def _ask(self, path: str, body: Any) -> Reply:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.left_s)
        connection.response_class = self._response  # type: ignore[assignment]
        with contextlib.closing(connection):
            content = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", f"{parts.path}{path}", content, self._headers)
            answer = connection.getresponse()
            if answer.getheader("Content-Encoding", "identity") != "identity":
                raise ValueError("a compressed answer, which nobody asked for")
            text = answer.read(LONGEST_ANSWER + 1)
        if len(text) > LONGEST_ANSWER:
            raise ValueError(f"an answer of more than {LONGEST_ANSWER >> 20} MiB")
        return Reply(f"{self.url}{path}", answer.status, text)

    def _response(self, sock: socket.socket, *words: Any, **named: Any) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(sock, *words, **named)
        response.fp = io.BufferedReader(_Timed(self, sock, response.fp.detach()))
        return response


class _Timed(io.RawIOBase):
    """What a socket receives: a read waits for what is left of all time, so that drops do not add up."""

    def __init__(self, asker: Asker, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._asker = asker
        self._socket = sock
        self._raw = raw

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read within the limits."""
        self._socket.settimeout(self._asker.left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Close what is read."""
        self._raw.close()
        super().close()


def _refused(url: str, found: str) -> RequestError:
    hint = f"is it running, and is this its HTTP port (8000 by default)? Try `curl -i {url}`"
    return RequestError(f"ask the server at {url}", found=found, hint=hint)
