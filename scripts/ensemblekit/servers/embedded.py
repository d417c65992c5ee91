# SPDX-License-Identifier: Apache-2.0
"""Provider `embedded`: the real Triton server out of a PyPI wheel, this Python's stub, the kit's backend."""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import stat
import sys
import sysconfig
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

from ensemblekit.assets.store import build_once, fetch_wheel, is_whole, unpack_wheel
from ensemblekit.errors import UnsupportedMachine
from ensemblekit.paths import cache_dir, repo_root, temporary_dir
from ensemblekit.releases import Flavour, Release, has_ensembles
from ensemblekit.servers.emulation import switch_off_ensembles
from ensemblekit.servers.ports import LOOPBACK

__all__ = [
    "EmbeddedInstallation",
    "check_machine",
    "has_server",
    "install_embedded",
    "libpython_folder",
    "plain_path",
    "server_tree",
]

WHEEL_PROJECT = "nvidia-pytriton"
WHEEL_PLATFORM = "manylinux_2_35_x86_64"
MINIMUM_GLIBC = (2, 35)  # the wheels' own tag
GLIBC_TEST_VARIABLE = "ENSEMBLEKIT_TEST_GLIBC"  # tests simulate an old system with it
SERVER = Path("pytriton/tritonserver")
BINARY = SERVER / "bin" / "tritonserver"
KEPT = ("pytriton/tritonserver", "nvidia_pytriton.libs")  # the wheel's Python code is not needed


# what a shell reads as one word: Triton starts a Python model's process with `bash -c "exec STUB MODEL ..."` and quotes
# neither (stub_launcher.cc of the Python backend)
PLAIN = re.compile(r"[A-Za-z0-9_./+=@%:,-]+")


@dataclass(frozen=True)
class EmbeddedInstallation:
    """A server that can be started: its binary, its backends and the environment it needs."""

    release: Release
    flavour: Flavour
    binary: Path
    backends: Path
    environment: dict[str, str]
    emulated: bool

    @property
    def cleanup(self) -> list[str]:
        """The command to run when the server has ended: none."""
        return []

    def backend_folders(self) -> dict[str, tuple[str, ...]]:
        """Return the backends, by name, each with its files.

        Raises:
            OSError: The folder cannot be read.
        """
        folders = sorted(self.backends.iterdir())
        return {folder.name: tuple(sorted(file.name for file in folder.iterdir())) for folder in folders}

    def command(
        self,
        repository: Path,
        _ports: tuple[int, int, int],
        options: list[str],
        *,
        environment: dict[str, str],
        host: str = LOOPBACK,
    ) -> list[str]:
        """Return the command line of the server; the environment is its process's own."""
        return [
            str(self.binary),
            f"--model-repository={plain_path(repository)}",
            f"--backend-directory={plain_path(self.backends)}",
            *(f"--{endpoint}-address={host}" for endpoint in ("http", "grpc")),
            f"--metrics-address={LOOPBACK}",
            *options,
        ]


def install_embedded(release: Release, flavour: Flavour, into: Path) -> EmbeddedInstallation:
    """Return a server of this release and flavour, with a private backend folder under `into`.

    Args:
        release: Which Triton.
        flavour: As shipped, or one of the workarounds.
        into: The folder of this server's run; `backends/` is made in it.

    Raises:
        FetchError: The wheel cannot be fetched or is not the expected one.
        UnsupportedMachine: Not Linux on x86-64, glibc too old, no stub or no shared library for this Python, or an
            environment that the stub's Python cannot read.
    """
    check_machine()
    _require_readable_packages()
    ensembles = has_ensembles(release, flavour)
    tree = server_tree(release, ensembles=ensembles)
    return EmbeddedInstallation(
        release=release,
        flavour=flavour,
        binary=tree / BINARY,
        backends=_private_backends(tree, into / "backends"),
        environment=_environment(tree),
        emulated=not ensembles,
    )


def check_machine() -> None:
    """Raise if the wheels' server cannot run here.

    Raises:
        UnsupportedMachine: Not Linux on x86-64, or a C library older than the wheels need.
    """
    system, machine = platform.system(), platform.machine()
    version = os.environ.get(GLIBC_TEST_VARIABLE) or platform.libc_ver()[1]
    if (system, machine) != ("Linux", "x86_64"):
        raise UnsupportedMachine(
            "run the embedded Triton server",
            found=f"{system} on {machine}; the wheels are for Linux on x86_64",
            hint="use a Linux x86-64 machine, or `--provider attach` with the URL of a running server",
        )
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < MINIMUM_GLIBC:
        raise UnsupportedMachine(
            "run the embedded Triton server",
            found=f"glibc {version or 'unknown'}; the wheels need 2.35 or newer",
            hint="use Ubuntu 22.04, Debian 12, RHEL 10 or newer, or `--provider attach` with the URL "
            "of a running server",
        )


def _require_readable_packages() -> None:
    """Refuse an environment whose path files are not ASCII: the stub's Python would end, the server wait for ever."""
    for file in sorted(Path(sysconfig.get_path("purelib")).glob("*.pth")):
        if not (content := file.read_bytes()).isascii():
            raise UnsupportedMachine(
                "run Python models in the server",
                found=f"{file.name} of this environment names a folder that is not ASCII, "
                f"{os.fsdecode(content).strip().splitlines()[0]}; "
                "Triton's Python stays in the C locale and cannot read it",
                hint="move the checkout to a folder whose path has no such letters, and run scripts/run there",
            )


def has_server(release: Release) -> bool:
    """Return whether a release's server is in the cache."""
    return is_whole(_server_folder(release), str(BINARY))


def _server_folder(release: Release, *, ensembles: bool = True) -> Path:
    """Return where the tree of a release's server is, or will be."""
    return cache_dir() / "servers" / (release.name if ensembles else f"{release.name}-no-ensemble")


def server_tree(release: Release, *, ensembles: bool = True) -> Path:
    """Return the cached tree of a release's server, unpacked once; without ensembles, a changed private copy.

    Raises:
        FetchError: The wheel cannot be fetched or is not the expected one.
        UnsupportedMachine: The emulation does not know this library.
    """
    folder = _server_folder(release, ensembles=ensembles)
    if ensembles:
        return build_once(folder, lambda draft: _unpack(release, draft), str(BINARY))
    original = server_tree(release)

    def copy_and_switch_off(draft: Path) -> None:
        for part in KEPT:
            shutil.copytree(original / part, draft / part)
        switch_off_ensembles(draft)

    return build_once(folder, copy_and_switch_off, str(BINARY))


def _unpack(release: Release, draft: Path) -> None:
    wheel = fetch_wheel(WHEEL_PROJECT, release.wheel, sha256=release.sha256, platform=WHEEL_PLATFORM)
    whole = draft / "wheel"
    unpack_wheel(wheel, whole)
    for part in KEPT:
        (draft / part).parent.mkdir(parents=True, exist_ok=True)
        (whole / part).rename(draft / part)
    shutil.rmtree(whole)
    server = draft / SERVER  # a zip file keeps no run bits
    for program in (
        draft / BINARY,
        *server.glob("python_backend_stubs/*/triton_python_backend_stub"),
    ):
        program.chmod(0o755)


def _private_backends(tree: Path, backends: Path) -> Path:
    """Lay out a backend folder: `python` with the stub of this Python, and the kit's `vllm`."""
    server = tree / SERVER
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        have = ", ".join(sorted(path.name for path in (server / "python_backend_stubs").iterdir()))
        raise UnsupportedMachine(
            f"run Python models under Python {version}",
            found=f"the server ships stubs for Python {have}",
            hint="make the environment with Python 3.11 or 3.12 (scripts/run does so by itself)",
        )
    shutil.copytree(server / "backends", backends, dirs_exist_ok=True)
    shutil.copy2(stub, backends / "python" / stub.name)
    shutil.copytree(
        repo_root() / "env" / "backends" / "vllm",
        backends / "vllm",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return backends


def _environment(tree: Path) -> dict[str, str]:
    """Return what the stub needs to find its libraries and this Python.

    It ignores PYTHONPATH and takes the first python3 on PATH. Its own library path is relative to the wheel,
    so a copied stub needs the wheel's libraries named. A stub that cannot start makes the server wait for
    ever. Its Python stays in the C locale, in which it does not find itself under a path that is not ASCII.
    """
    programs = Path(sys.executable).parent
    path = f"{plain_path(programs.parent) / programs.name}{os.pathsep}{os.environ.get('PATH', '')}"
    libraries = [str(tree / "nvidia_pytriton.libs"), *filter(None, [libpython_folder()])]
    old = [value] if (value := os.environ.get("LD_LIBRARY_PATH")) else []
    return {"PATH": path, "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *old])}


def libpython_folder() -> str | None:
    """Return the folder of this Python's shared library, None if the system finds it by itself.

    Raises:
        UnsupportedMachine: There is none: Triton's Python stub could not start.
    """
    library = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    for folder in filter(None, [sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib")]):
        if (Path(folder) / library).is_file():
            return str(folder)
    if find_library(f"python{sys.version_info.major}.{sys.version_info.minor}"):
        return None
    raise UnsupportedMachine(
        "run Python models in the server",
        found=f"no {library} on this machine; Triton's Python stub is linked against it",
        hint="install it (Debian, Ubuntu: `apt install "
        f"libpython{sys.version_info.major}.{sys.version_info.minor}`), "
        "or use a Python built with --enable-shared",
    )


def plain_path(folder: Path) -> Path:
    """Return the folder itself if a shell reads its path as one word, else a link to it that has such a path.

    The link has the same name for the same folder, and stays: it stands in the kit's cache, or among temporary files
    where the path of the cache is no plain one either.

    Raises:
        OSError: The link cannot be made.
        PermissionError: Somebody else could change it.

    >>> plain_path(Path("/srv/models"))
    PosixPath('/srv/models')
    """
    if PLAIN.fullmatch(str(folder)):
        return folder
    target = folder.resolve()
    link = _links() / hashlib.sha256(os.fsencode(target)).hexdigest()[:12]
    if not link.is_symlink() or link.readlink() != target:
        draft = link.with_name(f"{link.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        draft.symlink_to(target)
        draft.replace(link)  # at once, whoever else makes the same
    return link


def _links() -> Path:
    """Return a folder that only this user can write to, whoever made what is there before."""
    folder = cache_dir() / "paths"
    if not PLAIN.fullmatch(str(folder)):
        folder = temporary_dir() / f"ensemblekit-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()  # never through a link: in a folder for all, it may be another user's
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is a link, or belongs to another user: remove it, or set ENSEMBLEKIT_CACHE")
    folder.chmod(0o700)
    return folder
