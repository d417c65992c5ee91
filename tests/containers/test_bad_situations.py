# SPDX-License-Identifier: Apache-2.0
"""What a reader sees when containers cannot be had: one clear error with a hint each, provoked for real."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from ensemblekit.cli.serve import serve_forever
from ensemblekit.errors import FetchError, KitError, PortBusy, ServerExited, UnsupportedMachine
from ensemblekit.releases import get_release
from ensemblekit.servers.container import install_container
from ensemblekit.servers.container_engine import find_engine
from ensemblekit.servers.ports import free_ports
from ensemblekit.servers.process import TritonServer
from ensemblekit.settings import visible_gpu
from tests.containers.conftest import MakeServer
from tests.containers.engine import STAND_INS, Podman

BASE = f"{STAND_INS}:24.08-py3"
START_TIMEOUT_S = 120.0
SMALL_DISK = "64m"


def text_of(error: BaseException) -> list[str]:
    """The lines of an error: what was attempted first, the hint last."""
    print(error)
    lines = str(error).splitlines()
    assert lines[0].startswith("Could not ")
    assert lines[1].startswith("Found: ")
    assert lines[-1].startswith("Hint: ")
    assert len([line for line in lines if line.startswith("Hint: ")]) == 1
    return lines


def install() -> object:
    """Ask for the vLLM image of 24.08, as a lesson does."""
    return install_container(get_release("24.08"), "vllm-image", "test")


def test_no_engine_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ENSEMBLEKIT_ENGINE")

    with pytest.raises(UnsupportedMachine) as caught:
        install()

    assert text_of(caught.value) == [
        "Could not find a container engine.",
        "Found: no docker and no podman on the PATH",
        "Hint: install one (Debian, Ubuntu: `sudo apt install podman`), or use PROVIDER 'embedded'",
    ]


def test_podman_that_does_not_work_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage = tmp_path / "storage.conf"
    root = tmp_path / "root"  # podman makes it before it looks at the driver
    storage.write_text(f'[storage]\ndriver = "floppy"\ngraphroot = "{root}"\nrunroot = "{root}"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(storage))

    with pytest.raises(UnsupportedMachine) as caught:
        install()

    lines = text_of(caught.value)
    assert lines[0] == "Could not reach the container engine."
    assert lines[1].startswith("Found: podman does not answer: ")
    assert "floppy" in lines[1]
    assert "podman info" in lines[-1]


def test_docker_without_its_daemon_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not shutil.which("docker"):
        pytest.skip("no docker client on this machine")
    monkeypatch.setenv("ENSEMBLEKIT_ENGINE", "docker")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")

    with pytest.raises(UnsupportedMachine) as caught:
        install()

    lines = text_of(caught.value)
    assert lines[1].startswith("Found: docker does not answer: ")
    assert "sudo systemctl start docker" in lines[-1]


def test_image_absent_without_a_network_asks_for_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMBLEKIT_IMAGES", "registry.invalid/tritonserver")  # a name that never resolves

    with pytest.raises(FetchError) as caught:
        install()

    lines = text_of(caught.value)
    assert lines[0] == "Could not pull registry.invalid/tritonserver:24.08-vllm-python-py3."
    assert "registry.invalid" in lines[1]
    assert lines[-1].startswith("Hint: is the registry reachable from here?")


def test_wrong_tag_points_to_the_release_table(insecure: str) -> None:
    with pytest.raises(FetchError) as caught:
        install()

    lines = text_of(caught.value)
    assert lines[0] == f"Could not pull {insecure}/tritonserver:24.08-vllm-python-py3."
    assert "manifest unknown" in lines[1]
    assert lines[-1].startswith("Hint: is the tag right? `ensemblekit releases`")


@pytest.mark.parametrize("registry", ["locked"], indirect=True)
def test_no_login_names_the_command_that_logs_in(insecure: str) -> None:
    with pytest.raises(FetchError) as caught:
        install()

    lines = text_of(caught.value)
    assert "unauthorized" in lines[1] or "authentication required" in lines[1]
    assert lines[-1] == f"Hint: log in first: `podman login {insecure}`"


def test_image_in_a_registry_is_pulled_with_its_digest(insecure: str, podman: Podman, tmp_path: Path) -> None:
    image = f"{insecure}/tritonserver:24.08-vllm-python-py3"
    (tmp_path / "small").mkdir()
    archive = shutil.make_archive(str(tmp_path / "small"), "tar", tmp_path / "small")
    podman.run("import", archive, image)
    podman.run("push", "--tls-verify=false", image)
    podman.run("rmi", image)
    told = list[str]()

    installation = install_container(get_release("24.08"), "vllm-image", "test", progress=told.append)

    assert installation.digest.startswith(f"{insecure}/tritonserver@sha256:")
    assert all("of about 19 GB" in line for line in told)
    podman.run("rmi", image)


def test_disk_too_small_is_said_before_anything_is_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(disk)], check=True)
    storage = tmp_path / "storage.conf"
    storage.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{disk}/graph"\nrunroot = "{tmp_path}/run-root"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(storage))
    monkeypatch.setenv("ENSEMBLEKIT_IMAGES", "registry.invalid/tritonserver")
    try:
        with pytest.raises(FetchError) as caught:
            install()
    finally:
        subprocess.run(["umount", str(disk)], check=True)

    assert text_of(caught.value) == [
        "Could not pull registry.invalid/tritonserver:24.08-vllm-python-py3.",
        "Found: 0.1 GB free where podman keeps images; it needs 24.7 GB",
        "Hint: make room, for example with `podman system prune`, or use PROVIDER 'embedded'",
    ]


def test_busy_port_names_its_holder(make_server: MakeServer, podman: Podman) -> None:
    ports = free_ports(3)
    server = make_server(image=BASE, ports=ports)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", ports[1]))
        holder.listen()

        with pytest.raises(PortBusy) as caught:
            server.start(START_TIMEOUT_S)

    lines = text_of(caught.value)
    assert lines[0] == f"Could not use port {ports[1]}."
    assert "already listens on it" in lines[1]
    assert podman.state()["containers"] == []


def test_gpu_asked_for_where_none_is() -> None:
    if visible_gpu():
        pytest.skip("this machine has a GPU")

    with pytest.raises(UnsupportedMachine) as caught:
        install_container(get_release("24.08"), "vllm-image", "test", gpu=True)

    assert text_of(caught.value) == [
        "Could not give the container a GPU.",
        "Found: no NVIDIA GPU that nvidia-smi can see",
        "Hint: use DEVICE 'cpu', or install NVIDIA's driver",
    ]


def test_container_killed_from_outside_while_it_starts(make_server: MakeServer, podman: Podman) -> None:
    server = make_server(image=BASE)

    def kill(_server: TritonServer) -> None:
        podman.run("kill", server.installation.name, check=False)

    with pytest.raises(ServerExited) as caught:
        server.start(START_TIMEOUT_S, kill)

    lines = text_of(caught.value)
    assert caught.value.exit_code == 137
    assert "it exited with code 137" in lines[1]
    assert lines[-1].startswith("Hint: the container was killed from outside")
    assert podman.state()["containers"] == []


def test_container_killed_from_outside_while_it_serves(podman: Podman, monkeypatch: pytest.MonkeyPatch) -> None:
    def say_and_kill(server: TritonServer, _gateway: object) -> None:
        podman.run("kill", server.installation.name)

    monkeypatch.setattr("ensemblekit.cli.serve._say", say_and_kill)  # a second shell would kill it now
    monkeypatch.setattr("ensemblekit.servers.container.image_of", lambda *_: BASE)
    parameters = {"PROVIDER": "container", "ENGINE": "stand-in", "FLAVOUR": "base-plus-vllm"}

    with pytest.raises(ServerExited) as caught:
        serve_forever(parameters, ready_timeout_s=START_TIMEOUT_S)

    lines = text_of(caught.value)
    assert lines[1] == "Found: it ended by itself with exit code 137"
    assert "killed from outside" in lines[-1]


def test_limits_that_the_host_refuses_are_explained(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMBLEKIT_CONTAINER_ARGS", "--ulimit=nofile=4000000:4000000")

    with pytest.raises(ServerExited) as caught:
        make_server(image=BASE).start(START_TIMEOUT_S)

    assert "--ulimit=nofile=1024" in text_of(caught.value)[-1]


def test_built_image_that_is_not_here_names_the_build(settings: Podman) -> None:
    with pytest.raises(KitError) as caught:
        install_container(get_release("24.08"), "base-plus-vllm", "test")

    assert text_of(caught.value)[-1] == "Hint: `ensemblekit workaround build` makes it"


def test_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KitError) as caught:
        find_engine("lxc")

    assert text_of(caught.value)[0] == "Could not use the container engine 'lxc'."
