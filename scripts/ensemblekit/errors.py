# SPDX-License-Identifier: Apache-2.0
"""Every error the kit raises on purpose.

KitError
├── ParameterError        a notebook or command-line parameter is unknown, mistyped or out of range
├── FetchError            a file could not be fetched or is not what its checksum says
├── UnsupportedMachine    this machine cannot run what was asked for
├── OutOfGpuMemory        less memory of a GPU is free than the model needs
├── RepositoryError       a model repository or one of its files cannot be used
├── ServerError
│   ├── ServerExited      the server process ended before it was ready
│   ├── ServerStuck       the server waits for ever for a model's process that cannot start
│   ├── ServerNotReady    the server still ran, but was not ready within its time
│   └── PortBusy          something else already listens on the port
├── RequestError          a server answered a request with an error, or not at all
├── BuildError            a build with upstream's build.py did not go as planned
└── CheckFailed           something that a lesson says must hold did not hold
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

__all__ = [
    "BuildError",
    "CheckFailed",
    "FetchError",
    "KitError",
    "OutOfGpuMemory",
    "ParameterError",
    "PortBusy",
    "RepositoryError",
    "RequestError",
    "ServerError",
    "ServerExited",
    "ServerNotReady",
    "ServerStuck",
    "UnsupportedMachine",
    "one_of",
]

Word = TypeVar("Word", bound=str)


class KitError(Exception):
    """Something failed that a reader can act upon: what was tried, what was found, what to do next."""

    def __init__(
        self,
        attempted: str,
        *,
        found: str,
        hint: str,
        log_path: Path | None = None,
        log_tail: Sequence[str] = (),
    ) -> None:
        """Build the error; its text is the same facts, in this order.

        Args:
            attempted: What was being done, as the end of "Could not ...".
            found: What was there instead.
            hint: The next thing to type or to change.
            log_path: The log that holds the evidence.
            log_tail: The last lines of that log.
        """
        self.attempted, self.found, self.hint = attempted, found, hint
        self.log_path, self.log_tail = log_path, tuple(log_tail)
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [f"Could not {self.attempted}.", f"Found: {self.found}"]
        if self.log_tail:
            lines += [f"Last {len(self.log_tail)} log lines:", "```", *self.log_tail, "```"]
        if self.log_path is not None:
            lines.append(f"Log: {self.log_path}")
        lines.append(f"Hint: {self.hint}")
        return "\n".join(lines)

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows of this error: its text says it all, and IPython asks for nothing more."""
        return [f"{type(self).__name__}: {self}"]


class ParameterError(KitError):
    """A notebook or command-line parameter is unknown, of the wrong type or out of range."""


class FetchError(KitError):
    """A file could not be fetched, or is not what its checksum says."""


class UnsupportedMachine(KitError):  # noqa: N818 - names a state of the machine, reads better without "Error"
    """This machine cannot run what was asked for."""


class OutOfGpuMemory(KitError):  # noqa: N818 - names what was found
    """Less memory of a GPU is free than the model needs; said before a server is started."""


class RepositoryError(KitError):
    """A model repository, or one of its files, cannot be used."""


class ServerError(KitError):
    """A Triton server did not do what was asked of it."""


class ServerExited(ServerError):  # noqa: N818 - names what happened
    """The server process ended before it was ready; `exit_code` holds its exit code."""

    exit_code: int | None = None


class ServerNotReady(ServerError):  # noqa: N818 - names what happened
    """The server process still ran, but did not become ready within its time."""


class ServerStuck(ServerError):  # noqa: N818 - names what happened
    """The server runs, but waits for ever for the process of a model that cannot start."""


class PortBusy(ServerError):  # noqa: N818 - names what happened
    """Something that the kit did not start already listens on the port."""


class RequestError(KitError):
    """A server answered a request with an error, or did not answer in time."""


class BuildError(KitError):
    """A build with upstream's build.py did not go as planned."""


class CheckFailed(KitError):  # noqa: N818 - the statement that failed
    """Something that a lesson says must hold did not hold."""


def one_of(what: str, value: str, legal: Sequence[Word]) -> Word:
    """Return a value as the one of the legal words that it is.

    Raises:
        ParameterError: It is none of them.

    >>> one_of("DEVICE", "cpu", ("auto", "cpu"))
    'cpu'
    """
    for word in legal:
        if word == value:
            return word
    raise ParameterError(f"use {what} {value!r}", found="no such value", hint=f"choose one of {', '.join(legal)}")
