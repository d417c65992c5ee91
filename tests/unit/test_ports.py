# SPDX-License-Identifier: Apache-2.0
"""Loopback ports: free ones, and who holds a busy one."""

import os
import socket

import pytest

from ensemblekit.errors import PortBusy
from ensemblekit.servers.ports import PORT_RANGE, free_ports, is_free, require_free


def test_free_ports_are_distinct_free_and_in_the_range() -> None:
    ports = free_ports(3)

    assert len(set(ports)) == 3
    assert all(port in PORT_RANGE and is_free(port) for port in ports)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"], ids=["loopback", "all"])
def test_require_free_busy_port_names_the_process(address: str) -> None:
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        with pytest.raises(PortBusy, match=f"pid {os.getpid()}"):
            require_free(listener.getsockname()[1])
