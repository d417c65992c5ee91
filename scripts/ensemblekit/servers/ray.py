# SPDX-License-Identifier: Apache-2.0
"""Ray, with which vLLM spreads one engine over hosts: a cluster of this host alone, with a node for each GPU.

Each node has an address and a GPU of its own, as hosts have; what passes between them stays on this machine.
"""

import os
import shutil
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Self

from ensemblekit.errors import UnsupportedMachine
from ensemblekit.faults.log import LogReader
from ensemblekit.gpu import VISIBLE_VARIABLE
from ensemblekit.servers.ports import free_ports
from ensemblekit.servers.supervised import SupervisedProcess

__all__ = ["RAY_ENGINE", "RayCluster", "require_ray"]

# vLLM finds that the nodes share a host, and then looks for the GPUs of all of them in each; one node sees only its own
RAY_ENGINE = MappingProxyType({"distributed_executor_backend": "ray", "disable_custom_all_reduce": True})
FIRST_NODE = 2  # Ray takes 127.0.0.1 for the address of the whole host
OBJECT_STORE_BYTES = 200_000_000  # vLLM keeps nothing in it; the default is a third of the memory
START_TIMEOUT_S = 60.0
STARTED = "Ray runtime started."
TAIL_LINES = 5


class RayCluster:
    """Ray's nodes. Nothing runs until `start`; all ends with `stop`, or with this process.

    Attributes:
        address: Where engines find it, for RAY_ADDRESS.
    """

    def __init__(self, devices: tuple[str, ...], folder: Path) -> None:
        """Choose addresses.

        Args:
            devices: CUDA_VISIBLE_DEVICES of each node; empty for one without a GPU.
            folder: Where the nodes' logs go.

        Raises:
            UnsupportedMachine: Ray is not installed.
        """
        require_ray()
        self.devices, self.folder, self._port = devices, folder, free_ports(1)[0]
        self.address = f"{_node(0)}:{self._port}"
        self._nodes: list[SupervisedProcess] = []
        self._files: Path | None = None

    def start(self) -> Self:
        """Start the nodes, one after the other.

        Raises:
            ServerExited: A node ended, or did not start in time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # a short path: Ray's sockets lie under it
        self._files = Path(tempfile.mkdtemp(prefix="kit-ray-"))
        head = ("--head", f"--port={self._port}", "--include-dashboard=false", f"--temp-dir={self._files}")
        for at in range(len(self.devices)):
            node = self._start_node(at, head if at == 0 else (f"--address={self.address}",))
            self._nodes.append(node)
            with LogReader(node.log_path) as log:
                node.require_answer(
                    partial(_started, log),
                    START_TIMEOUT_S,
                    attempted=f"start node {at + 1} of Ray",
                    late="it did not start in time",
                    hint="read its log",
                    tail_lines=TAIL_LINES,
                )
        return self

    def _start_node(self, at: int, words: tuple[str, ...]) -> SupervisedProcess:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={_node(at)}", f"--num-gpus={int(bool(self.devices[at]))}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
        return SupervisedProcess(
            [*command, *words],
            self.folder / f"ray-{at + 1}.log",
            environment=os.environ | {VISIBLE_VARIABLE: self.devices[at]},
            folder=self.folder,
        )

    def stop(self) -> None:
        """End all nodes; doing so again does nothing."""
        while self._nodes:
            self._nodes.pop().stop()
        if self._files:
            shutil.rmtree(self._files, ignore_errors=True)


def require_ray() -> None:
    """Raise if Ray is not installed; it is no part of the kit's environments.

    Raises:
        UnsupportedMachine: It is not.
    """
    if find_spec("ray") is None:
        raise UnsupportedMachine(
            "spread an engine with Ray", found="no ray in this environment", hint="`.venv/bin/pip install ray`"
        )


def _node(at: int) -> str:
    return f"127.0.0.{FIRST_NODE + at}"


def _started(log: LogReader) -> bool:
    return any(STARTED in line for line in log.read_new())
