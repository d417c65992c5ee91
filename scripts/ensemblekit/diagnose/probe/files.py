# SPDX-License-Identifier: Apache-2.0
"""A server's files: NVIDIA's layout (`/opt/tritonserver`), the wheel's, an image's; and its core library, read."""

import mmap
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ensemblekit.diagnose.probe.start import FIX, ProbeAnswer
from ensemblekit.errors import FetchError, UnsupportedMachine
from ensemblekit.paths import temporary_dir
from ensemblekit.servers.emulation import PLATFORM_CONSTANT, REPLACED_CONSTANT

__all__ = ["ServerOnDisk", "find_server", "read_image", "read_server", "reads_as_ensembles"]

ELF = b"\x7fELF"
# where the program lies under a root: NVIDIA's, an image's file system, the wheel's, a build's install folder
PLACES = (
    "bin/tritonserver",
    "tritonserver/bin/tritonserver",
    "opt/tritonserver/bin/tritonserver",
    "pytriton/tritonserver/bin/tritonserver",
    "install/bin/tritonserver",
)
LIBRARIES = ("lib", "lib64", "../../nvidia_pytriton.libs", "../nvidia_pytriton.libs")  # seen from the root
# where the core library lies: in NVIDIA's images and those of build.py, and in images made from the wheel
IMAGE_FOLDERS = ("/opt/tritonserver/lib", "/nvidia_pytriton.libs")
COPY_TIMEOUT_S = 120.0
SCHEDULER = b"ensemble_scheduler.cc"  # the path of a source file that only a core with ensembles is made of
MANAGER = b"model_repository_manager.cc"  # of any core


@dataclass(frozen=True)
class ServerOnDisk:
    """A `tritonserver` and what belongs to it."""

    binary: Path
    core: Path | None  # the library that decides what the server knows; None if it could not be found
    library_folders: tuple[Path, ...]  # where the program's libraries lie, for LD_LIBRARY_PATH

    @property
    def environment(self) -> dict[str, str]:
        """What the program needs to find its libraries; this process's own places come last."""
        old = [value] if (value := os.environ.get("LD_LIBRARY_PATH")) else []
        return {"LD_LIBRARY_PATH": os.pathsep.join([*map(str, self.library_folders), *old])}


def find_server(path: Path, *, run: bool = True) -> ServerOnDisk:
    """Return the server at a path: the program itself, or a folder that holds it in one of the known layouts.

    Args:
        path: The program or the folder.
        run: Whether it is to be run, so that it must have the right to.

    Raises:
        UnsupportedMachine: There is none, it is no Linux program, or it may not be run.
    """
    binary = path
    if os.path.isdir(path):  # unlike Path.is_dir, no error where this user may not look
        found = next((path / place for place in PLACES if os.path.isfile(path / place)), None)
        if found is None:
            denied = "" if os.access(path, os.R_OK | os.X_OK) else ", or no right to look into it"
            raise UnsupportedMachine(
                f"find a Triton server in {path}",
                found=f"none of {', '.join(PLACES)} in it{denied}",
                hint="give the folder that holds bin/tritonserver (/opt/tritonserver in NVIDIA's images), or the "
                "program itself",
            )
        binary = found
    if refused := _no_program(binary, run=run):
        raise UnsupportedMachine(f"use the server {binary}", found=refused[0], hint=refused[1])
    folders = _library_folders(binary.resolve())
    return ServerOnDisk(binary, _core(binary, folders), folders)


def _no_program(binary: Path, *, run: bool) -> tuple[str, str] | None:
    """Return why a file is no program that can be used, and what to do; None if it is one."""
    try:
        with binary.open("rb") as file:
            start = file.read(len(ELF))
    except OSError as error:
        hint = "give a server's root, its `tritonserver`, `release/flavour`, an image or a URL"
        return str(error.strerror or error), hint
    if start != ELF:
        hint = "give the program `tritonserver`; a wheel or an archive has to be unpacked first"
        return "a file, but not a Linux program", hint
    if run and not os.access(binary, os.X_OK):
        found = "a Linux program without the right to run it (a zip file keeps no run bits)"
        return found, f"`chmod +x {binary}`, or `--static`, which only reads it"
    return None


def _library_folders(binary: Path) -> tuple[Path, ...]:
    root = binary.parent.parent
    return tuple(folder.resolve() for name in LIBRARIES if (folder := root / name).is_dir())


def _core(binary: Path, folders: tuple[Path, ...]) -> Path | None:
    found = (file for folder in folders for file in sorted(folder.glob("libtritonserver*.so*")) if file.is_file())
    return next(found, binary if any(_found(binary, (PLATFORM_CONSTANT,))) else None)


def _found(path: Path, needles: tuple[bytes, ...]) -> Iterator[bytes]:
    """Yield those of the needles that a file holds; it is mapped, not read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for needle in needles:
            if content.find(needle) >= 0:
                yield needle


def reads_as_ensembles(core: Path) -> tuple[bool | None, tuple[str, ...]]:
    """Return what a core library says about ensembles without being run, and the evidence.

    A core without ensembles was compiled without `ensemble_scheduler.cc`, whose path is in every log call of
    it. The kit's emulation of such a core keeps the code but takes away the platform's name.

    Raises:
        OSError: The library cannot be read.
    """
    present = set(_found(core, (SCHEDULER, PLATFORM_CONSTANT, REPLACED_CONSTANT, MANAGER)))
    has = {True: "holds", False: "does not hold"}
    evidence = (
        f"{core.name} {has[SCHEDULER in present]} the source path {SCHEDULER.decode()}",
        f"{core.name} {has[PLATFORM_CONSTANT in present]} the platform name 'ensemble'",
    )
    if REPLACED_CONSTANT in present and PLATFORM_CONSTANT not in present:
        return False, (*evidence, "the platform name was taken out by this kit's emulation of the missing build flag")
    if MANAGER not in present:
        return None, (*evidence, f"{core.name} is not Triton's core: it names none of the core's sources")
    return SCHEDULER in present, evidence


def read_server(target: str, server: ServerOnDisk) -> ProbeAnswer:
    """Return what the core library of a server on disk says.

    Raises:
        UnsupportedMachine: It could not be found.
        OSError: It cannot be read.
    """
    if server.core is None:
        raise UnsupportedMachine(
            f"read the core library of {target}",
            found=f"no libtritonserver beside {server.binary}",
            hint="leave --static out: the server itself is then asked",
        )
    return _read(target, server.core, time.monotonic())


def _read(target: str, core: Path, begin: float) -> ProbeAnswer:
    verdict, evidence = reads_as_ensembles(core)
    hint = FIX if verdict is False else ""
    return ProbeAnswer(target, verdict, "library read", evidence, time.monotonic() - begin, hint)


def read_image(image: str) -> ProbeAnswer:
    """Return what the core library in an image says; nothing in the image is run.

    Raises:
        UnsupportedMachine: There is no container engine.
        FetchError: The image is not on this machine, or holds no core library where NVIDIA's do.
    """
    from ensemblekit.servers.container_engine import find_engine

    engine = find_engine()
    begin = time.monotonic()
    created = engine.ask("create", "--pull=never", image, "tritonserver")  # never started
    if created.returncode != 0:
        raise FetchError(
            f"read the image {image}",
            found=(created.stderr.strip().splitlines() or ["no message"])[-1],
            hint=f"`{engine.name} pull {image}` first",
        )
    container = created.stdout.strip().splitlines()[-1]
    with tempfile.TemporaryDirectory(prefix="ensemblekit-probe-", dir=temporary_dir()) as folder:
        try:
            for place in IMAGE_FOLDERS:
                engine.ask("cp", f"{container}:{place}/.", folder, timeout_s=COPY_TIMEOUT_S)
                found = sorted(file for file in Path(folder).glob("libtritonserver*.so*") if file.is_file())
                if found:
                    return _read(image, found[0], begin)
        finally:
            engine.ask("rm", "-f", container)
    raise FetchError(
        f"read the image {image}",
        found=f"no libtritonserver in {' or '.join(IMAGE_FOLDERS)} of it",
        hint="leave --static out: the server itself is then asked",
    )
