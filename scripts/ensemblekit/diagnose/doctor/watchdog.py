# SPDX-License-Identifier: Apache-2.0
"""Watch a request: a Python model's process may die on it while the server says ready, and the answer never comes.

Measured on 24.08 with numpy 2: the process ends with one printed line of C++ (`what(): ...`), becomes a zombie of
the server, and the request waits for ever.
"""

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ensemblekit.diagnose.lint.serving import numpy_in
from ensemblekit.errors import RequestError

__all__ = ["ModelProcess", "RequestHangs", "is_gone", "model_processes", "watched"]

STUB = "triton_python_b"  # the kernel keeps 15 characters of a name
LOOK_S = 0.25
# What a server gets to answer after a model's process has ended: 24.10 answers with an error after about a second.
GRACE_S = 4.0
_INSTANCE = re.compile(r"^(.+?)_\d+_\d+$")
_NUMPY = re.compile(r"(/\S*/(?:site|dist)-packages)/numpy[./]")


@dataclass(frozen=True)
class ModelProcess:
    """The process of one instance of a Python model."""

    pid: int
    model: str
    numpy: str = ""  # the version of the numpy that is loaded in it, empty if none is
    packages: str = ""  # the folder that numpy came from


class RequestHangs(RequestError):  # noqa: N818 - names what happened
    """A request will never be answered: the process that should answer it is gone; `dead` holds it."""

    dead: tuple[ModelProcess, ...] = ()


def model_processes(server_pid: int) -> tuple[ModelProcess, ...]:
    """Return the processes of Python models below a server, or a parent of it, that this user may look at."""
    found = list[ModelProcess]()
    with suppress(psutil.Error):
        for process in psutil.Process(server_pid).children(recursive=True):
            with suppress(psutil.Error, OSError):
                if process.name().startswith(STUB) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(_described(process))
    return tuple(found)


def _described(process: psutil.Process) -> ModelProcess:
    words = process.cmdline()
    instance = next((match[1] for word in reversed(words) if (match := _INSTANCE.match(word))), "")
    model = instance or (Path(words[1]).parent.parent.name if len(words) > 1 else "")
    loaded = _NUMPY.search(Path(f"/proc/{process.pid}/maps").read_text())
    packages = loaded[1] if loaded else ""
    version = numpy_in([Path(packages)]) if packages else ""
    return ModelProcess(process.pid, model, version or "", packages)


def is_gone(process: ModelProcess) -> bool:
    """Return whether a process has ended; the server may not have taken note of it (a zombie)."""
    try:
        return bool(psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def watched(ask: Callable[[], str], processes: tuple[ModelProcess, ...]) -> str:
    """Return what `ask` returns, unless a model's process ends while it waits.

    Args:
        ask: Sends the request and waits for its answer; has a limit of its own.
        processes: The models' processes, looked up before the request.

    Raises:
        RequestHangs: One of them ended and no answer came; the kit's own server is ended then.
        RequestError: What `ask` raises.
    """
    answers, errors = list[str](), list[BaseException]()

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # handed to the waiting thread
            errors.append(error)

    begin = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    died: float | None = None
    while thread.is_alive():
        thread.join(LOOK_S)
        dead = tuple(process for process in processes if is_gone(process))
        died = died or (time.monotonic() if dead else None)
        if died and thread.is_alive() and time.monotonic() - died > GRACE_S:
            raise _hangs(dead, died - begin)
    if errors:
        dead = tuple(process for process in processes if is_gone(process))
        if dead:  # the kit ends its own server then; any other goes on waiting
            raise _hangs(dead, time.monotonic() - begin) from errors[0]
        raise errors[0]
    return answers[0]


def _hangs(dead: tuple[ModelProcess, ...], elapsed_s: float) -> RequestHangs:
    names = ", ".join(sorted({process.model for process in dead}))
    error = RequestHangs(
        "get an answer through the ensemble",
        found=f"the process of {names} ended on the request, {elapsed_s:.1f} s after it was sent, without an answer; "
        "Triton by itself waits for ever",
        hint="see what ended it; with numpy 2 and a server up to 24.10 install `numpy<2` where the models run",
    )
    error.dead = dead
    return error
