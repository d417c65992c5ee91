# SPDX-License-Identifier: Apache-2.0
"""The manifests of env/kubernetes, played by a real podman on the stand-in images: they fail, answer, recover, report.

podman 4 needs systemd to ask a liveness probe, and does nothing when it fails: `Cluster.probe_until_restart` does what
a kubelet would, with the manifest's own numbers. `-rP` prints the seconds.
"""

import base64
import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from ensemblekit.paths import repo_root
from tests.containers.engine import STAND_INS, Podman, debian_archive
from tests.kustomize import KUBERNETES, documents, render

pytestmark = pytest.mark.slow
KEY = "0123456789abcdef"
KIT, WORKAROUND = "localhost/ensemblekit/kit:0.1.0", "localhost/ensemblekit/tritonserver:24.08-base-plus-vllm"
SHIPPED = "nvcr.io/nvidia/tritonserver:24.08-vllm-python-py3"
PYTHON = "localhost/ensemblekit-stand-in/python"
PACKAGES = Path("usr/local/lib/python3.11/dist-packages")
TRITON, JOB = "triton-pod-0-triton", "batch-batch"
QUESTION = "What is the capital of France?"
ANSWER = f"(stand-in) You asked: {QUESTION}"
WAIT_S = 60.0
NEW_NETWORK, SET_FLAGS, UP = 0x40000000, 0x8914, 0x1  # Linux's CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP
# a pod's first process, in place of podman's own, which is a program that Debian has apart
CHANGES = ("CMD trap exit TERM; sleep infinity & wait", "ENV PIP_NO_INDEX=1", "ENV PIP_BREAK_SYSTEM_PACKAGES=1")


def make_python(archive: Path) -> None:
    """Make a Debian with pip and what the kit's image installs, out of this environment: its own pip finds it there."""
    shutil.copy(debian_archive(), archive)
    names = re.findall(r"^([\w.-]+)==", (repo_root() / "env/locks/base.txt").read_text(), re.MULTILINE)
    places = dict[str, Path]()
    for name in {*names, "pip"} - {"numpy"}:  # Debian's part has that
        for file in distribution(name).files or []:
            if "third_party" not in file.parts:  # thousands of files, for completion alone
                source = Path(str(file.locate()))
                compiled = Path(cache_from_source(source))
                places[os.path.normpath(PACKAGES / file)] = source
                places[os.path.normpath(PACKAGES / file.parent / "__pycache__" / compiled.name)] = compiled
    with tarfile.open(archive, "a") as tar:
        for place, source in places.items():
            if source.is_file():
                tar.add(source, place)


def make_images(podman: Podman, folder: Path) -> None:
    """Make the kit's image and give the stand-ins the names of the manifests."""
    make_python(folder / "python.tar")
    podman.run("import", *(f"--change={one}" for one in CHANGES), str(folder / "python.tar"), PYTHON)
    (folder / "python.tar").unlink()
    file = f"--file={KUBERNETES / 'kit.Containerfile'}"
    podman.run("build", "--layers=false", f"--tag={KIT}", f"--build-arg=BASE={PYTHON}", file, str(repo_root()))
    podman.run("tag", f"{STAND_INS}:24.08-py3", WORKAROUND)
    podman.run("tag", f"{STAND_INS}:24.08-vllm-python-py3", SHIPPED)


@contextmanager
def own_network() -> Iterator[None]:
    """Give this thread and what it starts a network of its own: loopback alone, where ports 8000 to 8002 are free."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as before:
        if libc.unshare(NEW_NETWORK):
            pytest.skip(f"no network of its own here: {os.strerror(ctypes.get_errno())}")
        try:
            with socket.socket() as any_socket:
                fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH14x", b"lo", UP))
            yield
        finally:
            libc.setns(before.fileno(), NEW_NETWORK)


def wait_for(what: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Return the first answer that is not empty."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)
    return found


class Cluster:
    """One podman as the node: it plays manifests and says what became of them."""

    def __init__(self, podman: Podman, folder: Path) -> None:
        self.podman, self.folder = podman, folder
        self.variables = {"CONTAINERS_CONF": str(folder / "containers.conf"), "DISABLE_HC_SYSTEMD": "true"}
        (folder / "hosts").write_text("127.0.0.1 localhost triton\n")  # the name of the service
        (folder / "containers.conf").write_text(
            f'[engine]\ninfra_image = "{PYTHON}"\n[containers]\nbase_hosts_file = "{folder}/hosts"\n'
            'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'  # no more than this process may have
        )

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run podman."""
        return self.podman.run(*words, check=check, environment=self.variables)

    def play(self, manifests: str) -> None:
        """Play manifests; what plays already is replaced, and a volume that is there stays, as in a cluster."""
        there = self.run("volume", "ls", "--quiet").stdout.split()
        new = list[dict[str, Any]]()
        for one in yaml.safe_load_all(manifests):
            if one["kind"] == "PersistentVolumeClaim" and one["metadata"]["name"] in there:
                continue  # podman 4 refuses to play it again
            if one["kind"] == "Deployment":  # it would publish these on every address of a host
                del one["spec"]["template"]["spec"]["containers"][0]["ports"]
            new.append(one)
        (self.folder / "manifests.yaml").write_text(yaml.safe_dump_all(new))
        words = ("kube", "play", "--network=host", "--replace", str(self.folder / "manifests.yaml"))
        done = self.run(*words, check=False)
        assert done.returncode == 0, done.stderr

    def log(self, container: str) -> str:
        """What a container has written."""
        done = self.run("logs", container, check=False)
        return done.stdout + done.stderr

    def inspect(self, container: str) -> Any:
        """What podman knows of a container."""
        return json.loads(self.run("inspect", container).stdout)[0]

    def ask(self, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """Ask the server; without a body, by GET."""
        url, more = f"http://127.0.0.1:8000/v2/{path}", {"headers": headers, "timeout": 20, "trust_env": False}
        return httpx.get(url, **more) if body is None else httpx.post(url, json=body, **more)  # type: ignore[arg-type]

    def ready(self) -> bool:
        """Whether the readiness probe would pass."""
        try:
            return self.ask("health/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def answer(self) -> str:
        """The ensemble's answer."""
        response = self.ask("models/ensemble/generate", {"chat_input": QUESTION})
        return str(response.json().get("text_output", response.text))

    def probe_until_restart(self) -> int:
        """Ask the liveness probe as often as the manifest allows it to fail, then end the container as it says.

        podman's restart policy does the rest. Returns how often the probe failed.
        """
        (deployment,) = (one for one in documents("overlays/podman") if one["kind"] == "Deployment")
        probe = deployment["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
        for _ in range(probe["failureThreshold"]):
            assert self.run("healthcheck", "run", TRITON, check=False).returncode == 1
        process = psutil.Process(self.inspect(TRITON)["State"]["Pid"])
        process.terminate()
        psutil.wait_procs([process], timeout=probe["terminationGracePeriodSeconds"])
        if process.is_running():
            process.kill()
        return int(probe["failureThreshold"])


@pytest.fixture(scope="module")
def cluster(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A podman with the images that the manifests name, in a network of its own; nothing of it stays."""
    before = podman.state()
    with own_network():
        cluster = Cluster(podman, tmp_path_factory.mktemp("cluster"))
        begin = time.monotonic()
        make_images(podman, cluster.folder)
        secret = json.dumps({"key": base64.b64encode(KEY.encode()).decode()})  # as podman 4 reads what a pod refers to
        (cluster.folder / "secret.json").write_text(secret)
        podman.run("secret", "create", "triton-control", str(cluster.folder / "secret.json"))
        print(f"images of the cluster: {time.monotonic() - begin:.0f} s")
        yield cluster
        podman.run("pod", "rm", "--all", "--force", "--time=0")
        podman.run("volume", "rm", "--all")
        podman.run("secret", "rm", "triton-control")
        podman.untag(SHIPPED)
        podman.untag(WORKAROUND)
        podman.run("rmi", KIT, PYTHON)
    assert podman.state() == before


@pytest.fixture
def server(cluster: Cluster) -> Cluster:
    """The server of overlays/podman, ready."""
    if cluster.run("pod", "exists", "triton-pod-0", check=False).returncode != 0 or not cluster.ready():
        cluster.play(render("overlays/podman"))
        wait_for(cluster.ready)
    return cluster


def test_shipped_image_fails_with_the_known_line_and_the_workaround_answers(cluster: Cluster) -> None:
    manifests, begin = render("overlays/podman"), time.monotonic()
    cluster.play(manifests.replace(WORKAROUND, SHIPPED))
    wait_for(lambda: ENSEMBLE_REFUSED in cluster.log(TRITON))
    failed = time.monotonic()
    wait_for(lambda: "failed to load all models" in cluster.log(TRITON))
    ready_meanwhile = cluster.ready()

    cluster.play(manifests)
    wait_for(cluster.ready)

    assert not ready_meanwhile
    assert cluster.answer() == ANSWER
    print(f"shipped image: its line after {failed - begin:.1f} s; "
          f"workaround: an answer {time.monotonic() - failed:.1f} s later")  # fmt: skip


def test_server_runs_as_the_manifest_says(server: Cluster) -> None:
    pid = server.inspect(TRITON)["State"]["Pid"]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    write = server.run("exec", TRITON, "sh", "-c", "touch /models/x || touch /opt/x || touch /x", check=False)

    assert status["Uid"].split() == ["1000"] * 4
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert write.stderr.count("Read-only file system") == 3
    assert list(Path(f"/proc/{pid}/root/dev/shm").glob("triton_python_backend_shm_region_*"))


def test_model_control_is_refused_without_the_key_and_given_with_it(server: Cluster) -> None:
    path = "repository/models/postprocess/load"
    refused = server.ask(path, {})
    loaded = server.ask(path, {}, **{"ensemblekit-key": KEY})

    assert "restricted" in refused.text
    assert refused.status_code != httpx.codes.OK
    assert (loaded.status_code, loaded.text) == (httpx.codes.OK, "")
    wait_for(server.ready)


def test_job_asks_the_server_and_leaves_its_report(server: Cluster) -> None:
    """podman 4 knows no Job: its pod is played."""
    manifests, begin = documents("job"), time.monotonic()
    for one in manifests:
        if one["kind"] == "Job":
            template = one.pop("spec")["template"]
            one |= {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
            one["metadata"] |= template["metadata"]
    server.play(yaml.safe_dump_all(manifests))
    code = server.run("wait", JOB).stdout.strip()
    seconds = time.monotonic() - begin
    volume = Path(server.run("volume", "inspect", "--format={{.Mountpoint}}", "batch-runs").stdout.strip())
    (run,) = volume.glob("*-sweep-*")

    assert code == "0", server.log(JOB)
    assert "2 of 2 sets passed" in server.log(JOB)
    for name in ("01", "02"):
        assert "06_inference_through_the_ensemble" in (run / name / "report" / "index.html").read_text()
        assert list((run / name / "records").glob("06_*.json"))
    assert {path.stat().st_uid for path in run.rglob("*")} == {1000}
    print(f"Job: {seconds:.0f} s for two runs of lesson 06")


def test_dead_stub_stays_ready_until_the_liveness_probe_has_the_container_restarted(server: Cluster) -> None:
    before = server.inspect(TRITON)
    wait_for(lambda: server.run("healthcheck", "run", TRITON, check=False).returncode == 0)
    children = psutil.Process(before["State"]["Pid"]).children()
    (stub,) = (child for child in children if "/preprocess/" in " ".join(child.cmdline()))
    begin = time.monotonic()
    os.kill(stub.pid, signal.SIGKILL)
    wait_for(lambda: not stub.is_running() or stub.status() == psutil.STATUS_ZOMBIE)
    ready = server.ready()

    failures = server.probe_until_restart()
    ended = time.monotonic()
    wait_for(lambda: server.inspect(TRITON)["State"]["Pid"] not in (0, before["State"]["Pid"]))
    wait_for(server.ready)

    assert ready
    assert server.answer() == ANSWER
    assert server.inspect(TRITON)["Id"] == before["Id"]
    assert server.inspect(TRITON)["RestartCount"] > before["RestartCount"]
    print(f"dead stub: ready 200, {failures} failed probes and the grace {ended - begin:.1f} s; "
          f"an answer {time.monotonic() - ended:.1f} s later")  # fmt: skip


def test_restart_keeps_the_volume_and_answers_again(server: Cluster) -> None:
    """podman ends the old pod before it starts the new one; a cluster would do it the other way round."""
    volume = Path(server.run("volume", "inspect", "--format={{.Mountpoint}}", "triton-models").stdout.strip())
    filled, begin = (volume / "stand-in-1").stat(), time.monotonic()
    before = server.inspect(TRITON)["Id"]

    server.play(render("overlays/podman"))
    wait_for(server.ready)

    assert server.inspect(TRITON)["Id"] != before
    assert server.answer() == ANSWER
    assert (volume / "stand-in-1").stat().st_ino == filled.st_ino
    print(f"restart: {time.monotonic() - begin:.1f} s without an answer")
