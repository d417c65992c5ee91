# SPDX-License-Identifier: Apache-2.0
"""Fixtures, as nouns. Real servers are started from the PyPI wheels; what they need is fetched on first use."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemblekit.paths import repo_root
from ensemblekit.releases import Flavour, get_release
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import ServerOptions, TritonServer

# Folders whose files take minutes. They begin first, so that none of them is left to run alone at the end.
LONG_FIRST = ("notebooks", "containers", "faults", "servers", "browser", "atlas")
DATA = Path(__file__).parent / "data"
SAMPLE_S = 0.1  # of a processor's time
START_TIMEOUT_S = 60.0  # Python-only models on two busy cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders with the long tests in front."""
    rank = {folder: place for place, folder in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(rank)))


def slowdown() -> float:
    """Return how many times as long as on an idle machine work takes here now, at least 1.

    Limits of seconds that a promise names are multiplied by it: other work on the machine is not what they are about.
    """
    began_s, own_s = time.perf_counter(), time.thread_time()
    while time.thread_time() - own_s < SAMPLE_S:
        pass
    return max(1.0, (time.perf_counter() - began_s) / (time.thread_time() - own_s))


class ServerMaker:
    """Makes servers for a test and stops them after it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, list[TritonServer]()

    def __call__(
        self, repository: Path, release: str = "24.08", flavour: Flavour = "base-plus-vllm", **options: object
    ) -> TritonServer:
        folder = self.folder / f"server-{len(self.made)}"
        installation = install_embedded(get_release(release), flavour, folder)
        server = TritonServer(installation, repository, folder, ServerOptions(**options))  # type: ignore[arg-type]
        self.made.append(server)
        return server


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[ServerMaker]:
    """A maker of servers that are stopped when the test ends."""
    maker = ServerMaker(tmp_path)
    yield maker
    for server in maker.made:
        server.stop()


@pytest.fixture(scope="session")
def report_repository() -> Path:
    """The repository of the upstream report, with Python models."""
    return DATA / "report_repository"


@pytest.fixture(scope="session")
def model_repo() -> Path:
    """The kit's own model repository."""
    return repo_root() / "model_repo"
