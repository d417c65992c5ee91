# SPDX-License-Identifier: Apache-2.0
"""What an upgrade from one release to another moves, and whether this machine is ready for it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy

from ensemblekit.diagnose.preflight import Row
from ensemblekit.gpu import visible_gpus
from ensemblekit.paths import cache_dir
from ensemblekit.releases import Driver, Release, driver_for

__all__ = ["Difference", "check_upgrade", "compare_releases", "driver_fits"]

GB = 10**9
UNPACK_FACTOR = 1.3  # a pull holds archives and files at once


@dataclass(frozen=True)
class Difference:
    """One line of the two releases' tables.

    Attributes:
        name: What is compared.
        old: In the older release.
        new: In the newer one.
        means: What it asks of the reader if it moves, or why it matters that it does not.
    """

    name: str
    old: str
    new: str
    means: str

    @property
    def moves(self) -> bool:
        """Whether the two differ."""
        return self.old != self.new


class _Line(NamedTuple):
    """What is compared, and what it asks of the reader if it moves, or if it does not."""

    name: str
    value: Callable[[Release], str]
    moved: str
    same: str = ""


_LINES = (
    _Line("ensembles in the vLLM image", lambda row: _yes(row.ensemble_in_vllm_image), "the reason to upgrade"),
    _Line("Triton", lambda row: row.triton, "read the release notes between the two"),
    _Line("vLLM", lambda row: row.vllm, "its engine arguments: start once with your own model.json"),
    _Line(
        "Python",
        lambda row: row.python,
        "rebuild what your Python models pack in EXECUTION_ENV_PATH",
        "packed environments of Python models stay as they are",
    ),
    _Line("CUDA", lambda row: row.cuda, "what you compiled against it"),
    _Line(
        "driver, any GPU",
        lambda row: f"{driver_for(row).minimum} or later",
        "upgrade the driver first",
        "a driver that runs the old image runs the new one",
    ),
    _Line(
        "driver, data center GPU",
        lambda row: ", ".join(driver_for(row).data_center),
        "upgrade the driver first",
        "these or later ones of their branches; the driver may stay",
    ),
    _Line(
        "Python models take numpy 2",
        lambda row: _yes(row.numpy_2_safe),
        "numpy<2 is no longer needed",
        "keep numpy<2: it breaks string tensors in both",
    ),
    _Line("size of the vLLM image", lambda row: f"{row.vllm_image_gb:g} GB", "disk and pull time on every node"),
)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def compare_releases(old: Release, new: Release) -> tuple[Difference, ...]:
    """Return the two releases line by line.

    Raises:
        KeyError: The release table has no driver for a release's CUDA.
    """
    return tuple(_compared(line, line.value(old), line.value(new)) for line in _LINES)


def _compared(line: _Line, old: str, new: str) -> Difference:
    return Difference(line.name, old, new, line.same if old == new else line.moved)


def driver_fits(version: str, driver: Driver) -> bool:
    """Return whether a driver runs images with this CUDA, on a data center GPU if it is older than the minimum.

    >>> from ensemblekit.releases import get_release
    >>> needed = driver_for(get_release("24.10"))
    >>> [driver_fits(version, needed) for version in ("560.35.03", "535.183", "535.54", "550.54")]
    [True, True, False, False]
    """
    found = _numbers(version)
    if found >= _numbers(driver.minimum):
        return True
    return any(found[0] == _numbers(branch)[0] and found >= _numbers(branch) for branch in driver.data_center)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def check_upgrade(new: Release) -> tuple[Row, ...]:
    """Return whether this machine is ready for a release's vLLM image.

    Raises:
        OSError: The cache folder cannot be made.
    """
    return (_driver(new), _numpy(new), _disk(new))


def _driver(new: Release) -> Row:
    driver = driver_for(new)
    found = next((gpu.driver for gpu in visible_gpus()), None)
    older = ", ".join(driver.data_center)
    fix = f"install {driver.minimum} or later; on a data center GPU {older} or later of the same branch do"
    if found is None:
        return Row("NVIDIA driver", "none", fine=False, without=f"no GPU here; elsewhere: {fix}")
    return Row("NVIDIA driver", found, driver_fits(found, driver), fix)


def _numpy(new: Release) -> Row:
    version = str(numpy.__version__)
    fine = new.numpy_2_safe or version.startswith("1.")
    return Row("numpy of this environment", version, fine, "string tensors break: `pip install 'numpy<2'`")


def _disk(new: Release) -> Row:
    wanted, free = new.vllm_image_gb * UNPACK_FACTOR, shutil.disk_usage(cache_dir()).free / GB
    return Row("free disk for the image", f"{free:.0f} GB", free >= wanted, f"a pull wants {wanted:.0f} GB")
