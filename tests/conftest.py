# SPDX-License-Identifier: Apache-2.0
"""Fixtures, as nouns. Real servers are started from the PyPI wheels; what they need is fetched on first use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemblekit.paths import repo_root
from ensemblekit.releases import Flavour, get_release
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import ServerOptions, TritonServer

DATA = Path(__file__).parent / "data"
START_TIMEOUT_S = 60.0  # Python-only models on two busy cores


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
