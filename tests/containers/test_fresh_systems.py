# SPDX-License-Identifier: Apache-2.0
"""A fresh clone on the systems of today, in real containers: which Python is there, fetched, brought.

The containers are Debian as debootstrap makes it. Packages and the standalone Python come from a mirror that the test
makes: PyPI's own files, and this machine's Python 3.12 packed as python-build-standalone packs it.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ensemblekit.assets.store import build_once, fetch_wheel
from ensemblekit.bundle.create import PLATFORMS, _kit_files
from ensemblekit.paths import cache_dir, repo_root
from ensemblekit.releases import get_release
from ensemblekit.servers.embedded import WHEEL_PLATFORM, WHEEL_PROJECT
from tests.containers.engine import COMMAND_TIMEOUT_S, Podman, make_root
from tests.faults.conftest import LONG

pytestmark = pytest.mark.slow
LOCKS = repo_root() / "env" / "locks"
PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes")
# the address that uv knows for these archives, which UV_PYTHON_INSTALL_MIRROR replaces
RELEASES = "https://github.com/astral-sh/python-build-standalone/releases/download"
BUILD = "20240107"
LEFT_OUT = {"__pycache__", "test", "tests", "idlelib", "tkinter", "site-packages"}
ONLY_UV = "only-uv"  # the index of a mirror that has no other package
RUN_LESSON = "scripts/run --quick --only 01"
LIMITS = ("--shm-size=512m", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")


@dataclass(frozen=True)
class System:
    """A system: Debian's name of it, what is in it, what is done to it first, what the set-up must say."""

    suite: str
    packages: str
    said: str
    first: str = ":"


SYSTEMS = {
    "debian-13": System("trixie", "python3", "python3 is Python 3.13."),
    "debian-12-without-libpython": System("bookworm", "python3,python3-venv", "python3 has no libpython3.11.so.1.0:"),
    "python-3.12-of-the-system": System(
        "trixie", "python3", "made with Python 3.12.",
        "rm /usr/bin/python3*; tar -xzf /mirror/python.tar.gz -C /usr/local --strip-components=1",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """An engine without the stand-in images, which no test here needs."""
    engine = Podman(Path(tempfile.mkdtemp(prefix="kit-")))
    try:
        if engine.driver != "overlay":
            pytest.skip("this kernel mounts no overlay here, so that a root file system cannot be shared")
        yield engine
    finally:
        engine.remove()


@pytest.fixture(scope="module")
def python_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This machine's Python 3.12, in the layout of python-build-standalone's `install_only` archives."""
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    code = "import sys, sysconfig; print(sys.base_prefix, sysconfig.get_config_var('LIBDIR'), sys.version.split()[0])"
    prefix = library = version = ""
    for program in filter(None, (shutil.which("python3.12"), *folder.glob("3.12.*/bin/python3.12"))):
        answer = subprocess.run([program, "-c", code], capture_output=True, text=True, check=False)
        if answer.returncode == 0:  # a shim of pyenv may lead nowhere
            prefix, library, version = answer.stdout.split()
    if not library or not (Path(library) / "libpython3.12.so.1.0").is_file():
        pytest.skip("no Python 3.12 with a libpython on this machine (PATH, pyenv): nothing to make a mirror from")
    path = tmp_path_factory.mktemp("python") / f"cpython-{version}+{BUILD}-x86_64-unknown-linux-gnu-install_only.tar.gz"
    pack_python(Path(prefix), library, path)
    return path


def pack_python(prefix: Path, library: str, target: Path) -> None:
    """Pack an installed Python so that it runs from anywhere: it looks for its library beside itself."""
    old = f"{library}\0".encode()
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        for path in (prefix / "bin" / "python3.12", *sorted((prefix / "lib").rglob("*"))):
            member = path.relative_to(prefix)
            if path.is_dir() or path.suffix == ".a" or LEFT_OUT.intersection(member.parts):
                continue
            info = archive.gettarinfo(path, f"python/{member}")
            content = path.read_bytes() if info.isreg() else b""
            if content.startswith(b"\x7fELF"):
                here = f"$ORIGIN/{'../' * (len(member.parts) - 1)}lib\0".encode()
                content = content.replace(old, here.ljust(len(old), b"\0"))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("python/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, "python3.12"
        archive.addfile(link)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, python_archive: Path) -> Iterator[dict[str, str]]:
    """A mirror of a package index and of python-build-standalone, as the variables that name it."""
    release = get_release("24.08")
    locks = b"".join((LOCKS / f"{name}.txt").read_bytes() for name in ("base", "uv")) + release.wheel.encode()
    wheels = build_once(cache_dir() / "fresh" / f"wheels-{hashlib.sha256(locks).hexdigest()[:8]}", fetch_wheels)
    triton = fetch_wheel(WHEEL_PROJECT, release.wheel, sha256=release.sha256, platform=WHEEL_PLATFORM)
    folder = tmp_path_factory.mktemp("mirror")
    for wheel in (*wheels.glob("*.whl"), triton):
        place = folder / "simple" / wheel.name.split("-")[0].lower().replace("_", "-").replace(".", "-")
        place.mkdir(parents=True, exist_ok=True)
        (place / wheel.name).symlink_to(wheel)
    (folder / ONLY_UV).mkdir()
    (folder / ONLY_UV / "uv").symlink_to(folder / "simple" / "uv")
    (folder / BUILD).mkdir()
    (folder / BUILD / python_archive.name).symlink_to(python_archive)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    (folder / "downloads.json").write_text(json.dumps(downloads(python_archive)))
    try:
        yield {
            "PIP_INDEX_URL": f"{address}/simple",
            "UV_PYTHON_INSTALL_MIRROR": address,
            "UV_PYTHON_DOWNLOADS_JSON_URL": f"{address}/downloads.json",  # or uv wants the version that it knows
        }
    finally:
        server.shutdown()
        server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    """A file server whose listings are package indexes, and which does not say what it serves."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def fetch_wheels(draft: Path) -> None:
    """Fetch the locked packages of the quick environment, and uv, for Python 3.12."""
    platforms = [f"--platform={name}" for name in PLATFORMS]
    for name in ("base", "uv"):
        command = [*PIP, "--python-version=3.12.99", *platforms, f"--dest={draft}", "-r", str(LOCKS / f"{name}.txt")]
        subprocess.run(command, timeout=COMMAND_TIMEOUT_S, check=True)


def downloads(archive: Path) -> dict[str, object]:
    """What uv reads instead of the list that it was built with."""
    major, minor, patch = map(int, archive.name.split("-")[1].split("+")[0].split("."))
    url = f"{RELEASES}/{BUILD}/{archive.name.replace('+', '%2B')}"
    entry = {"name": "cpython", "arch": {"family": "x86_64", "variant": None}, "os": "linux", "libc": "gnu",
             "major": major, "minor": minor, "patch": patch, "prerelease": "", "variant": None, "build": BUILD,
             "url": url, "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}  # fmt: skip
    return {f"cpython-{major}.{minor}.{patch}-linux-x86_64-gnu": entry}


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh copy of the kit, as a clone or a bundle would have it."""
    folder = tmp_path_factory.mktemp("kit")
    for name in _kit_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repo_root() / name, folder / name)
    return folder


def run_in(
    podman: Podman, system: System, words: str, mounts: dict[Path, str], network: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a shell command in a container of a system, in /kit; all that it writes is gone afterwards."""
    place = cache_dir() / "fresh" / f"{system.suite}-{system.packages.replace(',', '-')}"

    def make(draft: Path) -> None:
        make_root(draft, system.suite, system.packages)

    root = build_once(place, make)
    options = [f"--network={network}", *LIMITS, "--workdir=/kit", "--env=ENSEMBLEKIT_TEST_GPU=0"]
    options += [f"--env={name}={value}" for name, value in environment.items()]
    options += [f"--volume={path}:{there}" for path, there in mounts.items()]
    command = ("sh", "-c", f"{{ {system.first}; }} && {words}")
    return podman.run("run", "--rm", *options, "--rootfs", f"{root / 'root'}:O", *command, check=False)


@pytest.mark.timeout(3 * COMMAND_TIMEOUT_S)
@pytest.mark.parametrize("name", SYSTEMS)
def test_first_lesson_runs_from_a_fresh_clone(
    podman: Podman, mirror: dict[str, str], python_archive: Path, kit: Path, name: str
) -> None:
    system = SYSTEMS[name]
    mounts = {kit: "/kit:O", python_archive: "/mirror/python.tar.gz:ro"}
    whole = LONG or name == "debian-13"  # the others differ in the Python that is found; then the packages run out
    index = {} if whole else {"PIP_INDEX_URL": mirror["PIP_INDEX_URL"].replace("simple", ONLY_UV)}

    done = run_in(podman, system, RUN_LESSON, mounts, "host", **(mirror | index))

    assert system.said in done.stderr
    fetched = "fetching a standalone Python 3.12" in done.stderr
    assert fetched is (name != "python-3.12-of-the-system")
    if whole:
        assert done.returncode == 0, done.stderr[-3000:]
        assert "1 of 1 lessons passed" in done.stderr
    else:
        assert "No matching distribution found" in done.stderr, done.stderr[-3000:]


def test_closed_network_names_every_other_way_in_one_error(podman: Podman, kit: Path) -> None:
    done = run_in(podman, SYSTEMS["debian-13"], RUN_LESSON + "; ls -d .venv", {kit: "/kit:O"}, "none")

    assert done.stderr.count("Could not find") == 1
    assert "Found: /usr/bin/python3 (3.13." in done.stderr
    assert "uv cannot be fetched: pypi.org: " in done.stderr
    for way in (
        "sudo apt install python3",
        "conda create",
        "UV_PYTHON_INSTALL_MIRROR",
        "bundle create --python-archive",
    ):
        assert way in done.stderr.partition("Hint: ")[2]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.timeout(4 * COMMAND_TIMEOUT_S)
def test_bundle_with_a_python_runs_without_a_network_and_without_a_fitting_python(
    podman: Podman, mirror: dict[str, str], python_archive: Path, tmp_path: Path
) -> None:
    options = ["--device=quick", "--no-lab", "--python=3.12", "--release=24.08", f"--python-archive={python_archive}"]
    command = [str(Path(sys.executable).parent / "ensemblekit"), "bundle", "create", str(tmp_path / "parts"), *options]
    subprocess.run(command, env=os.environ | mirror, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=True)
    words = f"python3 /parts/unpack.py /there && cd /there && {RUN_LESSON} && readlink -f .venv/bin/python"

    done = run_in(podman, SYSTEMS["debian-13"], words, {tmp_path / "parts": "/parts:ro", tmp_path: "/kit:ro"}, "none")

    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 of 1 lessons passed" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("/there/bundle/python/bin/python3")
