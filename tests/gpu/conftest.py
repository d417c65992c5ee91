# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that need a real GPU; without one they are skipped, and the reason is printed."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemblekit.assets.weights import ensure_checkpoint, splittable_checkpoint
from ensemblekit.gpu import MIN_DRIVER, Gpu, visible_gpus, why_unusable
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import StagedRepository, stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import TritonServer

RELEASE = "24.08"
START_TIMEOUT_S = 500.0  # compiling on a cold cache included
HELD_TIMEOUT_S = 120.0  # the first import of torch on a cold disk
LEFT_MIB = 3072
# holds all but so many MiB of the first visible GPU until its stdin is closed
HOLD = """
import sys, torch
free, total = torch.cuda.mem_get_info()
held = torch.empty(max(0, free - int(sys.argv[1]) * 2**20), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def usable_gpus() -> tuple[Gpu, ...]:
    """The visible GPUs, if vLLM can run on them."""
    return tuple(gpu for gpu in visible_gpus() if why_unusable(gpu) is None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here: all without a GPU and vLLM for it, some with one GPU alone."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    gpus = len(usable_gpus()) if marked else 0
    for item in marked:
        wanted = 2 if "two_gpus" in item.name else 1
        if gpus < wanted:
            reason = f"needs {wanted} NVIDIA GPU{'s' * (wanted > 1)} with driver {MIN_DRIVER} or newer, {gpus} here"
            item.add_marker(pytest.mark.skip(reason=reason))
        elif importlib.util.find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason="needs vLLM: the CUDA environment, not the quick one"))


@pytest.fixture(scope="session")
def a_gpu() -> Gpu:
    """The first visible GPU as it was before the tests."""
    return visible_gpus()[0]


class GpuServers:
    """Stages repositories for the GPU and starts servers on them; stops them all at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, list[TritonServer]()

    def stage(self, **how: Any) -> StagedRepository:
        """Stage the kit's repository for vLLM on the GPU."""
        folder = self.folder / f"server-{len(self.made)}"
        source = splittable_checkpoint(ensure_checkpoint(), how.get("tensor_parallel", 1))
        return stage_repository(folder / "models", source=source, device="cuda", **how)

    def server(self, repository: StagedRepository) -> TritonServer:
        """Return a server, not started."""
        folder = repository.path.parent
        installation = install_embedded(get_release(RELEASE), "base-plus-vllm", folder)
        server = TritonServer(installation, repository.path, folder, environment=repository.environment)
        self.made.append(server)
        return server

    def start(self, **how: Any) -> TritonServer:
        """Stage and start."""
        return self.server(self.stage(**how)).start(START_TIMEOUT_S)


@pytest.fixture(scope="session")
def gpu_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuServers]:
    """A maker of servers on the GPU."""
    servers = GpuServers(tmp_path_factory.mktemp("gpu"))
    yield servers
    for server in servers.made:
        server.stop()


@pytest.fixture(scope="session")
def a_gpu_server(gpu_servers: GpuServers) -> TritonServer:
    """One server for all tests that only ask."""
    return gpu_servers.start()


@pytest.fixture
def a_process_that_holds_the_memory() -> Iterator["subprocess.Popen[str]"]:
    """Another process that leaves a little of the first GPU free: room for CUDA contexts, not for a model."""
    command = [sys.executable, "-c", HOLD, str(LEFT_MIB)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.communicate(timeout=HELD_TIMEOUT_S)
