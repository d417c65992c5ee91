# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with real containers: one podman and its stand-in images for the whole session."""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ensemblekit.paths import RUN_DIR_VARIABLE
from ensemblekit.releases import Flavour, get_release
from ensemblekit.repository.stage import StagedRepository, stage_repository
from ensemblekit.servers.container import install_container
from ensemblekit.servers.ports import free_ports
from ensemblekit.servers.process import ServerOptions, TritonServer
from ensemblekit.workarounds.base_image import build_image, remove_image
from tests.containers.engine import Podman, missing

SECONDS = pytest.StashKey[dict[str, float]]()
MakeServer = Callable[..., TritonServer]
REGISTRY_START_S = 30.0
PASSWORD_FILE = "reader:$2y$05$WJ8RYVbrDXxjyYQFyYpdruFTGBgMGBBuYn3wbKBUUQYWfMjFsCDxO\n"  # bcrypt, of no use anywhere


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder; without an engine they are skipped with the reason."""
    reason = missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.container)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what the stand-in images cost."""
    if seconds := config.stash.get(SECONDS, {}):
        parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
        terminalreporter.write_line(f"stand-in images: {parts}")


@pytest.fixture(scope="session")
def podman(pytestconfig: pytest.Config) -> Iterator[Podman]:
    """An engine with the stand-in images; all of it is gone after the tests."""
    # a short path: conmon's sockets lie under it, and with a longer one podman waits 20 s for each container's end
    engine = Podman(Path(tempfile.mkdtemp(prefix="kit-")))
    try:
        engine.make_images()
        pytestconfig.stash[SECONDS] = engine.seconds
        yield engine
    finally:
        engine.remove()


@pytest.fixture(autouse=True)
def settings(podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Podman:
    """Let the kit use this podman, and a run folder of the test's own."""
    for name, value in podman.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path / "run"))
    return podman


@pytest.fixture
def repository(tmp_path: Path) -> StagedRepository:
    """The kit's repository, with the Python stand-in for `llm`: these images hold no vLLM."""
    return stage_repository(tmp_path / "models", source=None, device="cpu")


@pytest.fixture
def make_server(tmp_path: Path, repository: StagedRepository) -> Iterator[MakeServer]:
    """A maker of servers in containers, stopped after the test."""
    made = list[TritonServer]()

    def make(flavour: Flavour = "vllm-image", release: str = "24.08", image: str | None = None,
             **options: object) -> TritonServer:  # fmt: skip
        installation = install_container(get_release(release), flavour, "container-test", image=image)
        server = TritonServer(installation, repository.path, tmp_path / f"server-{len(made)}",
                              ServerOptions(**options), repository.environment)  # type: ignore[arg-type]  # fmt: skip
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def built(settings: Podman) -> Iterator[str]:
    """Workaround 1, built on the stand-in base with the kit's backend and without vLLM; removed after the test."""
    yield build_image(get_release("24.08"), backend="kit", vllm="none").image
    remove_image(get_release("24.08"))


@pytest.fixture
def registry(request: pytest.FixtureRequest, tmp_path: Path, podman: Podman) -> Iterator[str]:
    """A real registry on loopback (Debian's docker-registry), empty; with a password if the test asks for one."""
    (port,) = free_ports(1)
    locked = getattr(request, "param", "") == "locked"
    (tmp_path / "htpasswd").write_text(PASSWORD_FILE)
    access = f"auth: {{htpasswd: {{realm: kit, path: {tmp_path}/htpasswd}}}}\n" if locked else ""
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/registry}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{access}"
    )
    process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        _wait_for(f"http://127.0.0.1:{port}/v2/")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + REGISTRY_START_S
    while True:
        try:
            httpx.get(url, timeout=2, trust_env=False)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.fixture
def insecure(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The registry, allowed to speak plain HTTP, and named to the kit as the place of NVIDIA's images."""
    settings = tmp_path / "registries.conf"
    settings.write_text(f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n')
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(settings))
    monkeypatch.setenv("ENSEMBLEKIT_IMAGES", f"{registry}/tritonserver")
    return registry
