# SPDX-License-Identifier: Apache-2.0
"""The NVIDIA GPUs that a process started now would see: what they are, what is free on them, who holds the rest."""

import csv
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from io import StringIO

from ensemblekit.errors import UnsupportedMachine

__all__ = [
    "MIN_CAPABILITY",
    "MIN_DRIVER",
    "Gpu",
    "GpuProcess",
    "choose_visible",
    "parse_gpus",
    "parse_processes",
    "require_gpus",
    "visible_gpu",
    "visible_gpus",
    "why_unusable",
]

NVIDIA_SMI_TIMEOUT_S = 20  # a healthy driver answers in under one second, one that first has to wake up in ten
VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
GPU_FIELDS = ("index", "uuid", "name", "memory.total", "memory.free", "driver_version", "compute_cap")
PROCESS_FIELDS = ("gpu_uuid", "pid", "process_name", "used_memory")
# CUDA 13, for which the locked torch is built, runs on drivers from 580: docs.nvidia.com/deploy/cuda-compatibility/
# minor-version-compatibility.html, table 1, and the release notes of CUDA 13.0. scripts/bootstrap.py has it too.
MIN_DRIVER = 580
MIN_CAPABILITY = (7, 5)  # the same release notes: Maxwell, Pascal and Volta are gone


@dataclass(frozen=True)
class GpuProcess:
    """A process that holds memory of a GPU; `memory_mib` is None where the driver does not tell."""

    gpu_uuid: str
    pid: int
    name: str
    memory_mib: int | None

    def __str__(self) -> str:
        size = "memory" if self.memory_mib is None else f"{self.memory_mib} MiB"
        return f"pid {self.pid} ({self.name}): {size}"


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver's own tool describes it.

    Attributes:
        index: Its number in the order of the PCI bus, the driver's own.
        uuid: Its name that never changes.
        name: The product.
        total_mib: All its memory (MiB); None where the driver does not tell.
        free_mib: What is free now (MiB).
        driver: The driver's version, such as `580.65.06`.
        capability: Its compute capability; None where the driver is too old to tell.
        processes: Who holds its memory; empty too where they are outside of this container.
    """

    index: int
    uuid: str
    name: str
    total_mib: int | None
    free_mib: int | None
    driver: str
    capability: tuple[int, int] | None = None
    processes: tuple[GpuProcess, ...] = ()

    @property
    def device(self) -> str:
        """What CUDA_VISIBLE_DEVICES calls it: vLLM reads numbers, but a slice of a GPU has none."""
        return self.uuid if self.uuid.startswith("MIG-") else str(self.index)

    @property
    def knows_bfloat16(self) -> bool:
        """Whether vLLM runs bfloat16 on it: from compute capability 8.0, Ampere."""
        return self.capability is None or self.capability >= (8, 0)

    @property
    def holders(self) -> str:
        """Who holds the memory, for an error's text."""
        named = "; ".join(str(process) for process in self.processes)
        return named or "no process that the driver names here (another container or user, if any)"

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


def visible_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that `CUDA_VISIBLE_DEVICES` leaves visible, in its order; empty without a driver or a GPU."""
    # an old driver does not know the last field, and refuses the whole question for it
    text = _ask("--query-gpu", GPU_FIELDS) or _ask("--query-gpu", GPU_FIELDS[:-1])
    gpus = choose_visible(parse_gpus(text or ""), os.environ.get(VISIBLE_VARIABLE))
    if not gpus:
        return ()
    processes = parse_processes(_ask("--query-compute-apps", PROCESS_FIELDS) or "")
    return tuple(replace(gpu, processes=tuple(p for p in processes if p.gpu_uuid == gpu.uuid)) for gpu in gpus)


def visible_gpu() -> str | None:
    """Return the first visible GPU's name, None without one."""
    gpus = visible_gpus()
    return gpus[0].name if gpus else None


def require_gpus(count: int, attempted: str) -> tuple[Gpu, ...]:
    """Return the first `count` visible GPUs.

    Args:
        count: How many are asked for.
        attempted: What they are for, as the end of "Could not ...".

    Raises:
        UnsupportedMachine: Fewer are visible.
    """
    gpus = visible_gpus()
    if len(gpus) >= count:
        return gpus[:count]
    asked = "a GPU is" if count == 1 else f"{count} GPUs are"
    names = f"{len(gpus)} visible: {', '.join(str(gpu) for gpu in gpus)}" if gpus else "nvidia-smi shows none"
    listed = os.environ.get(VISIBLE_VARIABLE)
    limit = f"; {VISIBLE_VARIABLE} is {listed!r}" if listed is not None else ""
    raise UnsupportedMachine(
        attempted,
        found=f"{asked} asked for; {names}{limit}",
        hint=f"ask for at most {len(gpus)}, or make more visible with {VISIBLE_VARIABLE}"
        if gpus
        else "use DEVICE 'cpu', or a machine with an NVIDIA GPU and its driver (`nvidia-smi` must list it)",
    )


def why_unusable(gpu: Gpu) -> str | None:
    """Return why the locked torch cannot run on a GPU, None if it can.

    >>> why_unusable(Gpu(0, "GPU-1", "NVIDIA A100", 40960, 40000, "535.104.05"))
    'driver 535.104.05; the locked torch (CUDA 13) needs 580 or newer'
    """
    major = gpu.driver.partition(".")[0]
    if major.isdigit() and int(major) < MIN_DRIVER:
        return f"driver {gpu.driver}; the locked torch (CUDA 13) needs {MIN_DRIVER} or newer"
    if gpu.capability is not None and gpu.capability < MIN_CAPABILITY:
        found, needed = (".".join(map(str, pair)) for pair in (gpu.capability, MIN_CAPABILITY))
        return f"{gpu} of compute capability {found}; the locked torch (CUDA 13) needs {needed} or newer"
    return None


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    r"""Return the GPUs of `nvidia-smi --query-gpu=... --format=csv`, asked for GPU_FIELDS with or without the last.

    >>> parse_gpus("index, uuid, ...\n1, GPU-5d, NVIDIA H200, 143771 MiB, 143167 MiB, 580.65.06, 9.0\n")[0].free_mib
    143167
    """
    found = []
    for row in _rows(text):
        if len(row) in (len(GPU_FIELDS), len(GPU_FIELDS) - 1) and row[0].isdigit():
            index, uuid, name, total, free, driver = row[:6]
            found.append(Gpu(int(index), uuid, name, _mib(total), _mib(free), driver, _capability(row[6:])))
    return tuple(found)


def parse_processes(text: str) -> tuple[GpuProcess, ...]:
    """Return the processes of `nvidia-smi --query-compute-apps=... --format=csv`, asked for PROCESS_FIELDS."""
    rows = [row for row in _rows(text) if len(row) >= len(PROCESS_FIELDS) and row[1].isdigit()]
    # a command line may hold the separator
    return tuple(GpuProcess(row[0], int(row[1]), ", ".join(row[2:-1]), _mib(row[-1])) for row in rows)


def choose_visible(gpus: Iterable[Gpu], listed: str | None) -> tuple[Gpu, ...]:
    """Return what CUDA leaves of the GPUs for a value of `CUDA_VISIBLE_DEVICES`.

    As in CUDA itself, an entry is an index or the beginning of a UUID, and the first that names no GPU hides
    itself and all after it.

    Args:
        gpus: All of the machine.
        listed: The variable's value; None if it is not set.
    """
    every = tuple(gpus)
    if listed is None:
        return every
    chosen: list[Gpu] = []
    for entry in (word.strip() for word in listed.split(",")):
        gpu = _named(every, entry)
        if gpu is None or gpu in chosen:
            break
        chosen.append(gpu)
    return tuple(chosen)


def _named(gpus: tuple[Gpu, ...], entry: str) -> Gpu | None:
    if entry.startswith("MIG-") and gpus:  # a slice of a GPU, whose memory this query does not tell
        return replace(gpus[0], uuid=entry, total_mib=None, free_mib=None)
    if entry.startswith("GPU-"):
        return next((gpu for gpu in gpus if gpu.uuid.startswith(entry)), None)
    return next((gpu for gpu in gpus if entry == str(gpu.index)), None)


def _ask(query: str, fields: tuple[str, ...]) -> str | None:
    command = ["nvidia-smi", f"{query}={','.join(fields)}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _rows(text: str) -> list[list[str]]:
    """Return the rows below the header."""
    return [[cell.strip() for cell in row] for row in csv.reader(StringIO(text), quoting=csv.QUOTE_NONE)][1:]


def _mib(text: str) -> int | None:
    """Return the number of `81559 MiB`; None for `[N/A]`, `[Insufficient Permissions]` and the like."""
    number = text.removesuffix("MiB").strip()
    return int(number) if number.isdigit() else None


def _capability(cells: list[str]) -> tuple[int, int] | None:
    major, _, minor = cells[0].partition(".") if cells else ("", "", "")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
