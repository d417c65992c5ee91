# SPDX-License-Identifier: Apache-2.0
"""nginx before servers: its configuration filled in, started under the reaper, ended with this process."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from ensemblekit.errors import ParameterError, PortBusy, UnsupportedMachine
from ensemblekit.servers.supervised import Supervised, SupervisedProcess

__all__ = ["Nginx", "find_nginx", "is_loopback", "reachable", "require_listening"]

START_TIMEOUT_S = 10.0
ASK_TIMEOUT_S = 1.0
TAIL_LINES = 5


class Nginx(Supervised):
    """A running nginx. Ends with `stop`, with this process, or by itself when it is killed.

    Attributes:
        host: The address it listens on.
        ports: Where it listens.
        folder: Its configuration and logs.
    """

    def __init__(
        self, template: Path, values: Mapping[str, str], folder: Path, *, host: str, ports: Sequence[int]
    ) -> None:
        """Write the configuration; nothing is started yet.

        Args:
            template: A configuration, in which words between @ signs are filled in.
            values: What for; FOLDER and HOST are added.
            folder: Where it goes.
            host: The address that it listens on.
            ports: All that it listens on.

        Raises:
            UnsupportedMachine: nginx is not installed.
        """
        self.host, self.ports, self.folder = host, tuple(ports), folder
        folder.mkdir(parents=True, exist_ok=True)
        self._program = find_nginx()
        text = template.read_text()
        more = {"FOLDER": str(folder), "HOST": f"[{host}]" if ":" in host else host}
        for name, value in {**values, **more}.items():
            text = text.replace(f"@{name}@", value)
        with open(self.config_path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)

    @property
    def config_path(self) -> Path:
        """What nginx was told; it may hold keys."""
        return self.folder / "nginx.conf"

    @property
    def log_path(self) -> Path:
        """What nginx says."""
        return self.folder / "nginx.log"

    def start(self) -> Self:
        """Start nginx and return it once it listens.

        Raises:
            PortBusy: Something else listens there.
            ServerExited: nginx ended; its last lines are in the error.
        """
        require_listening(self.host, self.ports)
        # errors at start go to standard error before the log of the configuration is open
        where = ["-c", str(self.config_path), "-p", str(self.folder)]
        command = [self._program, *where, "-e", "stderr", "-g", "daemon off;"]
        process = SupervisedProcess(command, self.log_path, environment=os.environ, folder=self.folder)
        self._process = process
        process.require_answer(
            self._listens,
            START_TIMEOUT_S,
            attempted=f"start nginx on {self.host}:{self.ports[0]}",
            late="it did not listen in time",
            hint="read its log; `nginx -t -c` with its configuration tells more",
            tail_lines=TAIL_LINES,
        )
        return self

    def _listens(self) -> bool:
        place = (reachable(self.host), self.ports[0])
        with contextlib.suppress(OSError), socket.create_connection(place, ASK_TIMEOUT_S):
            return True
        return False


def require_listening(host: str, ports: Sequence[int]) -> None:
    """Raise if nginx could not listen there; takes no time, so it is asked before an engine is started.

    Raises:
        ParameterError: The host is no address.
        UnsupportedMachine: nginx is not installed.
        PortBusy: Something listens on one of the ports, or the address is not this machine's.
    """
    is_loopback(host)
    find_nginx()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise PortBusy(
                    f"listen on {host}:{port}",
                    found=error.strerror or str(error),
                    hint="stop what listens there, or give another --port (the next ones are used too)",
                ) from error


def is_loopback(host: str) -> bool:
    """Return whether an address is reached from this machine alone.

    Raises:
        ParameterError: It is no address.
    """
    try:
        return ip_address(host).is_loopback
    except ValueError as error:
        raise ParameterError(
            f"listen on {host!r}",
            found="not an address",
            hint="give one of this machine's addresses (`ip addr`), or 0.0.0.0 for all of them",
        ) from error


def reachable(host: str) -> str:
    """Return where this machine reaches what listens on an address.

    >>> reachable("0.0.0.0"), reachable("10.0.0.5")
    ('127.0.0.1', '10.0.0.5')
    """
    address = ip_address(host)
    if address.is_unspecified:
        return "::1" if address.version == 6 else "127.0.0.1"
    return host


def find_nginx() -> str:
    """Return the program.

    Raises:
        UnsupportedMachine: nginx is not installed, or cannot do gRPC.
    """
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not found:
        raise UnsupportedMachine(
            "start nginx before the servers",
            found="no nginx on the PATH",
            hint="install it (Debian, Ubuntu: `sudo apt install nginx-light`)",
        )
    done = subprocess.run([found, "-V"], capture_output=True, text=True, check=False)
    if "http_v2_module" not in done.stderr:
        raise UnsupportedMachine(
            "start nginx before the servers",
            found=f"{found} without HTTP/2, which gRPC needs",
            hint="install your distribution's own nginx package",
        )
    return found
