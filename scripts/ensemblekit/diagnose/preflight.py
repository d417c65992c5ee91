# SPDX-License-Identifier: Apache-2.0
"""What this machine can run: one row a thing, with what was found and what it costs to be without it."""

import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from ensemblekit.errors import UnsupportedMachine
from ensemblekit.gpu import Gpu, visible_gpus, why_unusable
from ensemblekit.paths import cache_dir
from ensemblekit.servers.container_engine import find_engine
from ensemblekit.servers.embedded import check_machine, libpython_folder
from ensemblekit.servers.ports import holder_of, is_free

__all__ = ["Row", "gpu_row", "preflight"]

GIB = 2**30
WANTED_MEMORY_GIB = 6  # measured: one vLLM engine with the 135M model on a CPU, the server and the kernel take 4
WANTED_DISK_GIB = 8  # environment 3, servers 1, model 0.4, one run; the rest is room for pip
WANTED_SHARED_MEMORY_MIB = 64  # Triton's Python backend takes 1 MiB a model and grows
COMMAND_TIMEOUT_S = 20
NETWORK_TIMEOUT_S = 4
TRITON_PORTS = (8000, 8001, 8002)
NVIDIA_REGISTRY = "https://nvcr.io/v2/"


@dataclass(frozen=True)
class Row:
    """One finding."""

    name: str
    found: str
    fine: bool
    without: str  # what it costs to be without it, or the fix
    required: bool = False  # whether the embedded lessons need it


def preflight(*, network: bool = True) -> tuple[Row, ...]:
    """Look at this machine and return the findings; takes a few seconds, most of it waiting for registries.

    Args:
        network: Whether to ask the registries, the container engine and the usual ports too.

    Raises:
        OSError: The cache folder cannot be made.
    """
    rows = (_system(), _python(), _stub_library(), _cpu(), _memory(), _disk(), _shared_memory(), gpu_row())
    return (*rows, _ports(), _engine(), _pypi(), _ngc()) if network else rows


def _system() -> Row:
    found = f"{platform.system()} {platform.machine()}, glibc {platform.libc_ver()[1] or 'none'}"
    try:
        check_machine()
    except UnsupportedMachine as error:
        return Row("system", found, fine=False, without=error.hint, required=True)
    return Row("system", found, fine=True, without="only PROVIDER attach works elsewhere", required=True)


def _python() -> Row:
    fine = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Row("Python", platform.python_version(), fine, "the stubs and vLLM share 3.11 and 3.12 only", required=True)


def _stub_library() -> Row:
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}"
    try:
        found = "beside Python" if libpython_folder() else "system library"
    except UnsupportedMachine as error:
        return Row(f"{name}.so", "not found", fine=False, without=error.hint, required=True)
    return Row(f"{name}.so", found, fine=True, without="Python models cannot load", required=True)


def _cpu() -> Row:
    flags = _cpu_flags()
    best = next((name for name in ("avx512_bf16", "avx512f", "avx2") if name in flags), "no AVX2")
    without = "vLLM on the CPU needs AVX2; AVX-512 is faster"
    return Row("CPU", f"{psutil.cpu_count()} cores, {best}", best != "no AVX2", without)


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def _memory() -> Row:
    free = psutil.virtual_memory().available / GIB
    without = f"vLLM wants {WANTED_MEMORY_GIB} GiB; --quick needs 1"
    return Row("free memory", f"{free:.1f} GiB", free >= WANTED_MEMORY_GIB, without)


def _disk() -> Row:
    free = shutil.disk_usage(cache_dir()).free / GIB
    without = f"a first full run wants {WANTED_DISK_GIB} GiB; --quick needs 2"
    return Row("free disk", f"{free:.0f} GiB", free >= WANTED_DISK_GIB, without)


def _shared_memory() -> Row:
    folder = Path("/dev/shm")  # noqa: S108 - where Triton looks for it
    free = shutil.disk_usage(folder).free // 2**20 if folder.is_dir() else 0
    without = "Python models share tensors with the server through /dev/shm (docker: --shm-size=1G)"
    return Row("shared memory", f"{free} MiB", free >= WANTED_SHARED_MEMORY_MIB, without, required=True)


def gpu_row() -> Row:
    """Return the row about the GPUs that are visible: how much of each is free, and whether vLLM can run on it."""
    gpus = visible_gpus()
    reason = next((reason for gpu in gpus[:1] if (reason := why_unusable(gpu))), None)
    found = "; ".join(_described(gpu) for gpu in gpus) or "none"
    without = "the same cells run on the CPU, with fewer tokens/s"
    return Row("NVIDIA GPU", found, bool(gpus) and not reason, f"{reason}; {without}" if reason else without)


def _described(gpu: Gpu) -> str:
    memory = "" if gpu.free_mib is None else f", {gpu.free_mib} of {gpu.total_mib} MiB free"
    held = f" (held by {gpu.holders})" if gpu.processes else ""
    return f"{gpu.name}{memory}{held}, driver {gpu.driver}"


def _ports() -> Row:
    busy = [f"{port}: {holder_of(port)}" for port in TRITON_PORTS if not is_free(port)]
    without = "the kit finds free ports by itself; only your own `docker run -p` needs these"
    return Row("ports 8000-8002", ", ".join(busy) or "free", not busy, without)


def _engine() -> Row:
    try:
        found, fine = f"{find_engine().name} runs", True
    except UnsupportedMachine as error:
        found, fine = error.found, False
    return Row("container engine", found, fine, "NVIDIA's own images cannot be run; the same servers come from PyPI")


def _pypi() -> Row:
    command = [sys.executable, "-m", "pip", "index", "versions", "nvidia-pytriton"]
    try:
        answered = not subprocess.run(command, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False).returncode
    except (OSError, subprocess.TimeoutExpired):
        answered = False
    return _reached("PyPI", answered, "what is not in the cache yet cannot be fetched")


def _ngc() -> Row:
    try:
        httpx.get(NVIDIA_REGISTRY, timeout=NETWORK_TIMEOUT_S)
        answered = True
    except httpx.TransportError:
        answered = False
    return _reached("nvcr.io", answered, "NVIDIA's images cannot be pulled")


def _reached(name: str, answered: bool, without: str) -> Row:
    return Row(name, "reached" if answered else "not reached", answered, without)
