# SPDX-License-Identifier: Apache-2.0
"""One server that many seats share: Triton on loopback, limits in the model, and the gate before it."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

import psutil

from ensemblekit.errors import ServerError
from ensemblekit.lesson.lesson import Lesson
from ensemblekit.paths import RUN_DIR_VARIABLE, new_run_id, runs_dir
from ensemblekit.repository.config import set_parameter, write_config
from ensemblekit.repository.read import read_config
from ensemblekit.repository.stage import StagedRepository
from ensemblekit.servers.process import TritonServer
from ensemblekit.settings import Settings
from ensemblekit.workshop.gate import Gate, Limits, Seat, make_seats, require_place

__all__ = ["LARGEST", "SharedServer"]

LARGEST = {"max_tokens": 256, "n": 4}  # of one request, so that none holds the engine for long
WATCH_S = 0.5
GATE_FOLDER = "gate"


class SharedServer:
    """A running Triton behind its gate.

    Attributes:
        seats: Who may ask, each with its key.
        gate: The running nginx.
        server: The running Triton, which listens on loopback only.
    """

    def __init__(self, settings: Settings, *, seats: int, host: str, port: int, limits: Limits) -> None:
        """Start both.

        Args:
            settings: Release, flavour, engine and device, as of a lesson.
            seats: How many keys are made.
            host: The address that the gate listens on; on one that is not loopback a request needs a key.
            port: HTTP; gRPC and metrics are the next two.
            limits: What one seat may ask for.

        Raises:
            KitError: One of them cannot be started; nothing is left running.
        """
        require_place(host, port)
        self._stopped = threading.Event()
        os.environ.setdefault(RUN_DIR_VARIABLE, str(runs_dir() / new_run_id("workshop")))
        self._lesson = Lesson("workshop", settings)
        folder = self._lesson.run_dir / GATE_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self.seats: tuple[Seat, ...] = make_seats(seats, folder)
        self.server: TritonServer = self._lesson.server(_limited(self._lesson.repository()))
        self.gate = Gate(self.server, self.seats, folder, host=host, port=port, limits=limits)
        try:
            self._lesson.start(self.server)
            self.gate.start()
        except BaseException:
            self.stop()
            raise

    def keep(self, tell: Callable[[str], None]) -> None:
        """Start again what ends, Triton or nginx, until `stop` is called; the keys stay.

        Args:
            tell: Gets a line when that happens.

        Raises:
            ServerError: One of them could not be started again.
        """
        try:
            while not self._stopped.wait(WATCH_S):
                serves, is_open = self.server.serves, self.gate.running
                if self._stopped.is_set():  # in this order: `stop` says so before it ends them
                    return
                if not serves:
                    self.server.start_again(self._lesson.settings.ready_timeout_s, tell, self._end_if_stopped)
                elif not is_open:
                    tell("The gate (nginx) ended, starting it again.")
                    self.gate.start()
        except ServerError:
            if not self._stopped.is_set():
                raise
        finally:
            if self._stopped.is_set():
                self.gate.stop()  # what was being started meanwhile
                self.server.kill()

    def _end_if_stopped(self, server: TritonServer) -> None:
        if self._stopped.is_set():
            server.kill()

    def stop(self) -> None:
        """Stop both; doing so again does nothing."""
        self._stopped.set()
        self.gate.stop()
        self._lesson.stop()

    def __enter__(self) -> Self:
        """Return it, for use in a `with` statement."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop both."""
        self.stop()


def own_address(host: str) -> str:
    """Return the address that a participant types: that of this machine if the gate listens on all of them."""
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - it is compared with, not bound
        return host
    found = (
        one.address
        for name, addresses in sorted(psutil.net_if_addrs().items())
        for one in addresses
        if one.family.name == "AF_INET" and not one.address.startswith("127.") and psutil.net_if_stats()[name].isup
    )
    return next(found, host)


def _limited(repository: StagedRepository) -> StagedRepository:
    model = repository.path / "preprocess"
    if (model / "config.pbtxt").is_file():
        config = read_config(model)
        set_parameter(config, "limits", json.dumps(LARGEST))
        write_config(config, model / "config.pbtxt")
    # the composing model can be asked past preprocess: there the engine's own limits hold
    engine = {"VLLM_MAX_N_SEQUENCES": str(LARGEST["n"])}
    return replace(repository, environment=repository.environment | engine)


def latest_gate() -> Path | None:
    """Return the folder of the newest shared server's gate, None if there was none."""
    found = sorted(runs_dir().glob(f"*-workshop-*/{GATE_FOLDER}"))
    return found[-1] if found else None
