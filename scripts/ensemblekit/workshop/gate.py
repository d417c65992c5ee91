# SPDX-License-Identifier: Apache-2.0
"""The gate of a shared server: nginx before a Triton that listens on loopback only, with a key and limits per seat.

nginx does what it is known for (`limit_req`, `limit_conn`, HTTP and gRPC); this module fills in
`env/workshop/nginx.conf`.
"""

import base64
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ensemblekit.clients.grpc import Served
from ensemblekit.errors import ParameterError
from ensemblekit.paths import repo_root
from ensemblekit.servers.nginx import Nginx, is_loopback, require_listening

__all__ = ["KEY_FILE", "Gate", "Limits", "Seat", "make_seats", "require_place"]

KEY_FILE = "seats.json"
ANYONE = "anyone"  # who asks over loopback without a key
LAST_PORT = 65535


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


class Gate(Nginx):
    """A running nginx before one server. Ends with `stop`, with this process, or by itself when it is killed.

    Attributes:
        port: Its HTTP port; gRPC and metrics are the next two.
        open: Whether it listens on loopback only, where who asks without a key is let in.
    """

    def __init__(
        self, upstream: Served, seats: tuple[Seat, ...], folder: Path, *, host: str, port: int, limits: Limits
    ) -> None:
        """Write the configuration; nothing is started yet.

        Raises:
            ParameterError: The host is no address.
            UnsupportedMachine: nginx is not installed.
        """
        self.port, self.open = port, is_loopback(host)
        values = {
            "ANYONE": ANYONE if self.open else "",
            "KEYS": "\n    ".join(f'"{words}" {seat.name};' for seat in seats for words in _ways_to_say(seat.key)),
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
        template = repo_root() / "env" / "workshop" / "nginx.conf"
        super().__init__(template, values, folder, host=host, ports=range(port, port + 3))


def require_place(host: str, port: int) -> None:
    """Raise if the gate could not listen there; takes no time, so it is asked before an engine is started.

    Raises:
        ParameterError: The host is no address, or the port leaves no room for the two after it.
        UnsupportedMachine: nginx is not installed.
        PortBusy: Something listens on one of the three ports, or the address is not this machine's.
    """
    if not 1 <= port <= LAST_PORT - 2:
        raise ParameterError(
            f"listen on port {port}",
            found="the gate needs this port and the two after it",
            hint=f"give one from 1024 to {LAST_PORT - 2}",
        )
    require_listening(host, range(port, port + 3))


def _ways_to_say(key: str) -> tuple[str, str]:
    """Return what a client's header may hold: HTTP's Basic is what a URL with the key before its @ becomes."""
    return f"Bearer {key}", "Basic " + base64.b64encode(f"{key}:".encode()).decode()
