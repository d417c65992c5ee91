# SPDX-License-Identifier: Apache-2.0
"""The gate of a shared server: nginx before a Triton that listens on loopback only, with a key and limits per seat.

nginx does what it is known for (`limit_req`, `limit_conn`, HTTP and gRPC); this module fills in
`env/workshop/nginx.conf`.
"""

import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from ensemblekit.errors import ParameterError, PortBusy, UnsupportedMachine
from ensemblekit.paths import repo_root
from ensemblekit.servers.supervised import SupervisedProcess

__all__ = ["KEY_FILE", "Gate", "Limits", "Seat", "make_seats", "require_place"]

KEY_FILE = "seats.json"
ANYONE = "anyone"  # who asks over loopback without a key
START_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 1.0
TAIL_LINES = 5
LAST_PORT = 65535


class Upstream(Protocol):
    """A server behind the gate."""

    @property
    def http_url(self) -> str:
        """`host:port` of its HTTP endpoint."""

    @property
    def grpc_url(self) -> str:
        """`host:port` of its gRPC endpoint."""

    @property
    def metrics_url(self) -> str:
        """`host:port` of its metrics endpoint."""


@dataclass(frozen=True)
class Seat:
    """One participant's place: a name that says nothing about them, and the key that opens the gate."""

    name: str
    key: str

    def url(self, host: str, port: int) -> str:
        """Return what the participant gives a lesson as URL.

        >>> Seat("seat-01", "s3cret").url("10.0.0.5", 8000)
        's3cret@10.0.0.5:8000'
        """
        return f"{self.key}@{host}:{port}"


@dataclass(frozen=True)
class Limits:
    """What one seat may ask for.

    Attributes:
        rate: Requests a second; more than that wait.
        burst: How many wait before the next is refused.
        at_once: Requests under way at one time, a gRPC stream being one.
    """

    rate: int = 10
    burst: int = 64
    at_once: int = 16


def make_seats(count: int, folder: Path) -> tuple[Seat, ...]:
    """Return so many seats with new keys, and keep them in a file that only its owner reads.

    Raises:
        OSError: The file cannot be written.
    """
    seats = tuple(Seat(f"seat-{number:02}", secrets.token_hex(6)) for number in range(1, count + 1))
    path = folder / KEY_FILE
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump({seat.name: seat.key for seat in seats}, file, indent=1)
    return seats


class Gate:
    """A running nginx. Ends with `stop`, with this process, or by itself when it is killed.

    Attributes:
        host: The address it listens on.
        port: Its HTTP port; gRPC and metrics are the next two.
        folder: Its configuration and logs.
    """

    def __init__(
        self, upstream: Upstream, seats: tuple[Seat, ...], folder: Path, *, host: str, port: int, limits: Limits
    ) -> None:
        """Write the configuration; nothing is started yet.

        Raises:
            ParameterError: The host is no address.
            UnsupportedMachine: nginx is not installed.
        """
        self.host, self.port, self.folder = host, port, folder
        self.open = _is_loopback(host)
        folder.mkdir(parents=True, exist_ok=True)
        self._program = _nginx()
        self._process: SupervisedProcess | None = None
        values = {
            "FOLDER": str(folder),
            "ANYONE": ANYONE if self.open else "",
            "KEYS": "\n    ".join(f'"{words}" {seat.name};' for seat in seats for words in _ways_to_say(seat.key)),
            "HOST": f"[{host}]" if ":" in host else host,
            "PORT": str(port),
            "GRPC_PORT": str(port + 1),
            "METRICS_PORT": str(port + 2),
            "HTTP": upstream.http_url,
            "GRPC": upstream.grpc_url,
            "METRICS": upstream.metrics_url,
            "RATE": str(limits.rate),
            "BURST": str(limits.burst),
            "AT_ONCE": str(limits.at_once),
        }
        text = (repo_root() / "env" / "workshop" / "nginx.conf").read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        with open(self.config_path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)

    @property
    def config_path(self) -> Path:
        """What nginx was told; it holds the keys."""
        return self.folder / "nginx.conf"

    @property
    def log_path(self) -> Path:
        """What nginx says."""
        return self.folder / "nginx.log"

    @property
    def running(self) -> bool:
        """Whether it runs now."""
        process = self._process  # another thread may stop it meanwhile
        return process is not None and process.exit_code is None

    def start(self) -> "Gate":
        """Start nginx and return it once it listens.

        Raises:
            PortBusy: Something else listens there.
            ServerExited: nginx ended; its last lines are in the error.
        """
        require_place(self.host, self.port)
        # errors at start go to standard error before the log of the configuration is open
        command = [
            self._program,
            "-c",
            str(self.config_path),
            "-p",
            str(self.folder),
            "-e",
            "stderr",
            "-g",
            "daemon off;",
        ]
        self._process = SupervisedProcess(command, self.log_path, environment=os.environ, folder=self.folder)
        self._process.require_answer(
            self._listens,
            START_TIMEOUT_S,
            attempted="start nginx, the gate of the shared server",
            late="it did not listen in time",
            hint="read its log; `nginx -t -c` with its configuration tells more",
            tail_lines=TAIL_LINES,
        )
        return self

    def stop(self) -> None:
        """End nginx; doing so again does nothing."""
        if self._process:
            self._process.stop()
            self._process = None

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((_reachable(self.host), self.port), ASK_TIMEOUT_S):
            return True
        return False


def require_place(host: str, port: int) -> None:
    """Raise if the gate could not listen there; takes no time, so it is asked before an engine is started.

    Raises:
        ParameterError: The host is no address, or the port leaves no room for the two after it.
        UnsupportedMachine: nginx is not installed.
        PortBusy: Something listens on one of the three ports, or the address is not this machine's.
    """
    _is_loopback(host)
    if not 1 <= port <= LAST_PORT - 2:
        raise ParameterError(
            f"listen on port {port}",
            found="the gate needs this port and the two after it",
            hint=f"give one from 1024 to {LAST_PORT - 2}",
        )
    _nginx()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for each in (port, port + 1, port + 2):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, each))
            except OSError as error:
                raise PortBusy(
                    f"listen on {host}:{each}",
                    found=error.strerror or str(error),
                    hint="stop what listens there, or give another --port (the two after it are used too)",
                ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError as error:
        raise ParameterError(
            f"listen on {host!r}",
            found="not an address",
            hint="give one of this machine's addresses (`ip addr`), or 0.0.0.0 for all of them",
        ) from error


def _reachable(host: str) -> str:
    address = ip_address(host)
    if address.is_unspecified:
        return "::1" if address.version == 6 else "127.0.0.1"
    return host


def _ways_to_say(key: str) -> tuple[str, str]:
    """Return what a client's header may hold: HTTP's Basic is what a URL with the key before its @ becomes."""
    return f"Bearer {key}", "Basic " + base64.b64encode(f"{key}:".encode()).decode()


def _nginx() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not found:
        raise UnsupportedMachine(
            "start the gate of the shared server",
            found="no nginx on the PATH",
            hint="install it (Debian, Ubuntu: `sudo apt install nginx-light`)",
        )
    done = subprocess.run([found, "-V"], capture_output=True, text=True, check=False)
    if "http_v2_module" not in done.stderr:
        raise UnsupportedMachine(
            "start the gate of the shared server",
            found=f"{found} without HTTP/2, which gRPC needs",
            hint="install your distribution's own nginx package",
        )
    return found
