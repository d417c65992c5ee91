# SPDX-License-Identifier: Apache-2.0
"""The servers of this user's kernels, whichever kernel they belong to: found by their processes, stopped politely."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from ensemblekit.servers.supervised import STOP_GRACE_S

__all__ = ["LAB_VARIABLE", "RunningServer", "mark_idle", "running_servers", "stop_idle_servers"]

LAB_VARIABLE = "ENSEMBLEKIT_LAB"  # one JupyterLab; its kernels and their servers inherit it
PROGRAM = "tritonserver"
REPOSITORY, HTTP_PORT = "--model-repository=", "--http-port="
SERVERS_FOLDER = "servers"  # of a run: servers/LESSON/NAME
IDLE_MARK = "idle"  # beside the log of a server whose lesson has run to its end


@dataclass(frozen=True)
class RunningServer:
    """One server process.

    Attributes:
        process: Triton itself; its reaper sees it end and tidies up.
        lesson: The notebook that started it.
        http_url: Where it answers.
        since_s: Unix time of its start.
        idle: Whether its lesson has run to its end.
        lab: Which JupyterLab it belongs to; empty: none.
    """

    process: psutil.Process
    lesson: str
    http_url: str
    since_s: float
    idle: bool
    lab: str

    def __str__(self) -> str:
        return f"{self.lesson} at {self.http_url}, for {(time.time() - self.since_s) / 60:.0f} min"

    def stop(self) -> None:
        """End it; one that does not end by itself is killed."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.terminate()
            try:
                self.process.wait(STOP_GRACE_S)
            except psutil.TimeoutExpired:
                self.process.kill()


def running_servers(lab: str = "") -> list[RunningServer]:
    """Return the embedded servers that lessons of this user have running, oldest first.

    Args:
        lab: One JupyterLab, for its servers alone: all seats of a hub on one machine may be the same user.
    """
    found = (server for server in _servers() if lab in ("", server.lab))
    return sorted(found, key=lambda server: server.since_s)


def _servers() -> Iterator[RunningServer]:
    user = psutil.Process().username()
    for process in psutil.process_iter(["name", "username", "cmdline", "create_time"]):
        facts = process.info
        if facts["name"] != PROGRAM or facts["username"] != user:
            continue
        given = {prefix: _value(facts["cmdline"] or [], prefix) for prefix in (REPOSITORY, HTTP_PORT)}
        parts = Path(given[REPOSITORY]).parts
        if SERVERS_FOLDER not in parts[:-2]:
            continue
        with contextlib.suppress(psutil.Error):
            at = len(parts) - 1 - parts[::-1].index(SERVERS_FOLDER)
            yield RunningServer(
                process,
                lesson=parts[at + 1],
                http_url=f"127.0.0.1:{given[HTTP_PORT]}",
                since_s=facts["create_time"],
                idle=Path(*parts[: at + 2], IDLE_MARK).exists(),
                lab=process.environ().get(LAB_VARIABLE, ""),
            )


def _value(words: list[str], prefix: str) -> str:
    return next((word.removeprefix(prefix) for word in words if word.startswith(prefix)), "")


def mark_idle(lesson_folder: Path, idle: bool) -> None:
    """Note that a lesson has run to its end and its servers only wait, or that it goes on.

    Raises:
        OSError: The folder cannot be written.
    """
    if idle:
        (lesson_folder / IDLE_MARK).touch()
    else:
        (lesson_folder / IDLE_MARK).unlink(missing_ok=True)


def stop_idle_servers(lab: str) -> list[RunningServer]:
    """Stop the servers of one JupyterLab whose lessons have run to their end, and return them."""
    idle = [server for server in running_servers(lab) if server.idle]
    for server in idle:
        server.stop()
    return idle
