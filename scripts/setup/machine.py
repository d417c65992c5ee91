# SPDX-License-Identifier: Apache-2.0
"""This machine: what Triton's wheels and the locked torch need, refused before anything is fetched."""

import os
import shutil
import subprocess
from typing import Optional

from setup import ENGINE_TEXT, ROOT
from setup.messages import SetupError

LAST_ASCII = 127
MIN_GLIBC = (2, 35)  # the wheels that carry Triton are manylinux_2_35
NEEDED_MIB = {"base": 700, "cpu": 6000, "cuda": 14000}  # measured after an install, plus pip's temporary files
TEST_GLIBC_VARIABLE = "ENSEMBLEKIT_TEST_GLIBC"  # for the kit's own tests: pretend to be on this glibc
TEST_GPU_VARIABLE = "ENSEMBLEKIT_TEST_GPU"  # for them too: "1" pretends that a GPU is visible, "0" that none is
# CUDA 13, for which cuda.txt has its torch, runs on drivers from 580: docs.nvidia.com/deploy/cuda-compatibility/
# minor-version-compatibility.html, table 1, and the release notes of CUDA 13.0
MIN_DRIVER = 580
DRIVER_VERSION = "/proc/driver/nvidia/version"
ANSWER_TIMEOUT_S = 20


def has_gpu() -> bool:
    """Return whether an NVIDIA GPU is visible."""
    if TEST_GPU_VARIABLE in os.environ:
        return os.environ[TEST_GPU_VARIABLE] == "1"
    if os.path.isdir("/proc/driver/nvidia/gpus"):
        return bool(os.listdir("/proc/driver/nvidia/gpus"))
    return "GPU " in _nvidia_smi("-L")


def _nvidia_smi(*arguments: str) -> str:
    """Return what nvidia-smi answers, "" where it is missing or fails."""
    command = ["nvidia-smi"] + list(arguments)
    try:
        answer = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=ANSWER_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.decode(errors="replace")


def gpus_hidden() -> bool:
    """Return whether CUDA_VISIBLE_DEVICES leaves no GPU visible, as the kit itself will find later."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() in ("", "-1", "NoDevFiles")


def driver_version() -> Optional[str]:
    """Return the version of NVIDIA's driver such as "580.65.06", None where nothing tells it."""
    words = _nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader").split()
    if not words:  # in some containers there is a GPU without its tool
        try:
            with open(DRIVER_VERSION) as file:
                words = file.readline().split()
        except OSError:
            return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def check_driver(engine: str) -> None:
    """Refuse a driver that the locked torch cannot run on, before its gigabytes are fetched."""
    found = driver_version() if engine == "cuda" else None
    if found and int(found.split(".")[0]) < MIN_DRIVER:
        raise SetupError(
            "set up the GPU environment",
            "driver %s; the locked torch (CUDA 13) needs %d or newer" % (found, MIN_DRIVER),
            "update NVIDIA's driver, or use `--device cpu`",
        )


def glibc_version() -> Optional[tuple]:
    """Return the C library's version as a pair, None where it is not glibc."""
    try:
        text = os.environ.get(TEST_GLIBC_VARIABLE) or os.confstr("CS_GNU_LIBC_VERSION") or ""
        return tuple(int(part) for part in text.split()[-1].split(".")[:2])
    except (AttributeError, ValueError, IndexError):
        return None


def check_machine() -> None:
    """Refuse what Triton's wheels cannot run on, and a checkout that Triton's Python could not read."""
    if any(ord(letter) > LAST_ASCII for letter in ROOT + os.path.realpath(ROOT)):
        raise SetupError(
            "use a checkout below %s" % ROOT,
            "letters that are not ASCII in its path; Triton's Python stays in the C locale and cannot read it",
            "move the checkout to a folder whose path has no such letters, and run the same command there",
        )
    machine = "%s on %s" % (os.uname().sysname, os.uname().machine)
    if machine != "Linux on x86_64":
        raise SetupError(
            "run the real Triton on this machine",
            "%s; NVIDIA's wheels with the server exist for Linux on x86_64 only" % machine,
            "use an x86-64 Linux machine or virtual machine (WSL 2 counts)",
        )
    found = glibc_version()
    if found is None or found < MIN_GLIBC:
        library = "glibc %d.%d" % found if found else "a C library that is not glibc"
        raise SetupError(
            "run the real Triton on this machine",
            "%s; its wheels need glibc 2.35 or newer" % library,
            "use Ubuntu 22.04, Debian 12, Fedora 36, RHEL 10 or newer, or one of these in a container",
        )


def check_disk(folder: str, engine: str) -> None:
    """Refuse a disk that is too full, before pip fails in the middle."""
    free_mib = shutil.disk_usage(os.path.dirname(folder)).free // 2**20
    if free_mib < NEEDED_MIB[engine]:
        raise SetupError(
            "set up the %s" % ENGINE_TEXT[engine],
            "%d MiB free in %s, about %d needed" % (free_mib, os.path.dirname(folder), NEEDED_MIB[engine]),
            "free some space, or set ENSEMBLEKIT_VENV to a folder on another disk",
        )
