# SPDX-License-Identifier: Apache-2.0
"""How a server of the kit is reached: loopback ports, who holds a busy one, and the key of its model control.

Whoever may load a model may run code as the user of the server, and Triton looks at neither Origin, Host nor
Content-Type: without a key every web page could send it a model.py. The key stands in the server's command line, where
another user of the machine who may list processes can read it.
"""

import random
import secrets
import socket

from ensemblekit.errors import PortBusy

__all__ = ["control_arguments", "control_headers", "free_ports", "holder_of", "is_free", "new_key", "require_free"]

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - only where it is asked for
# below Linux's ephemeral ports (32768-60999), so that no outgoing connection takes one between choice and use
PORT_RANGE = range(20000, 32000)
HEADER = "ensemblekit-key"
RESTRICTED = "model-repository"  # loading, unloading and the index


def free_ports(count: int) -> tuple[int, ...]:
    """Return distinct loopback ports that nothing listens on now.

    Raises:
        PortBusy: No port of the range is free.
    """
    found: list[int] = []
    for port in random.sample(PORT_RANGE, len(PORT_RANGE)):
        if is_free(port):
            found.append(port)
        if len(found) == count:
            return tuple(found)
    raise PortBusy(
        "find free ports", found=f"none free in {PORT_RANGE}", hint="stop some of the servers on this machine"
    )


def require_free(port: int) -> None:
    """Raise if something listens on the port already.

    Raises:
        PortBusy: It does; the error names the process where it can be seen.
    """
    if not is_free(port):
        raise PortBusy(
            f"use port {port}",
            found=f"{holder_of(port)} already listens on it",
            hint="stop that process, or leave the port out and a free one is chosen",
        )


def holder_of(port: int) -> str:
    """Return who listens on a port, as text for an error message.

    >>> holder_of(1)
    'another process'
    """
    import psutil  # here: the quick probe asks for ports, and psutil would cost it a fifth of its time

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr or not connection.pid:
                continue
            if connection.laddr.port == port:
                return f"pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        pass  # seen only by its owner: then it has no name here
    return "another process"


def is_free(port: int) -> bool:
    """Return whether nothing listens on a loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def new_key() -> str:
    """Return a key that nobody can guess."""
    return secrets.token_hex(16)


def control_arguments(key: str, *, grpc: bool = True) -> list[str]:
    """Return the arguments of a server that takes model control from holders of the key alone.

    Args:
        key: The key.
        grpc: Whether the server has a gRPC endpoint.

    >>> control_arguments("k", grpc=False)
    ['--http-restricted-api=model-repository:ensemblekit-key=k']
    """
    options = ["--http-restricted-api", *(["--grpc-restricted-protocol"] if grpc else [])]
    return [f"{option}={RESTRICTED}:{HEADER}={key}" for option in options]


def control_headers(key: str) -> dict[str, str]:
    """Return the HTTP headers of a request for model control."""
    return {HEADER: key}
