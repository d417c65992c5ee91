# SPDX-License-Identifier: Apache-2.0
"""A disk that is full or read-only, and a cache that cannot be made: one clear error each, and no hint at a proxy."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemblekit.assets.store import build_once
from setup import installer
from setup.messages import Log, SetupError
from tests.unit.test_sweep import PROGRAM

DISK_KIB = 400
WHEEL_KIB = 2000  # more than the disk has
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with some hundred KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k,mode=0755", "tmpfs", place], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def _fill(disk: Path, left_kib: int) -> None:
    free = shutil.disk_usage(disk).free // 1024
    (disk / "fill").write_bytes(b"0" * 1024 * max(0, free - left_kib))


def _kit(*words: str, **variables: str) -> tuple[int, str]:
    """Run the command line, with the fixture notebooks, and return its exit code and what it said."""
    command, environment = [sys.executable, "-c", PROGRAM, *words], os.environ | variables
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stderr


def _is_clear(said: str, found: str) -> bool:
    return f"Found: {found}" in said and "Hint: " in said and "Traceback" not in said and "proxy" not in said


@needs_root
@pytest.mark.notebook
@pytest.mark.parametrize("left_kib", [0, 40])
def test_run_on_a_full_disk_is_one_clear_error(left_kib: int, disk: Path) -> None:
    _fill(disk, left_kib)

    code, said = _kit("run", "--only", "01", "--runs-dir", str(disk / "runs"))

    assert code == 2, said
    assert _is_clear(said, "No space left on device"), said
    assert f"Could not use {disk}" in said
    assert list(disk.rglob("kernel-*.json")) == []


@needs_root
def test_run_on_a_read_only_disk_is_one_clear_error(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    code, said = _kit("run", "--only", "01", "--runs-dir", str(disk / "runs"))

    assert code == 2
    assert _is_clear(said, "Read-only file system"), said


@needs_root
def test_download_onto_a_full_disk_does_not_blame_the_network(disk: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "big-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("big.py", "0" * 1024 * WHEEL_KIB)
        wheel.writestr("big-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: big\nVersion: 1.0\n")
        wheel.writestr("big-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("big-1.0.dist-info/RECORD", "")
    code = "from ensemblekit.assets.store import fetch_wheel\nfetch_wheel('big', '1.0', sha256='0' * 64)"
    variables = {"ENSEMBLEKIT_CACHE": str(disk)}
    variables |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": tmp_path.as_uri(), "PIP_CACHE_DIR": str(tmp_path / "pip")}

    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)

    assert "OSError: [Errno 28] No space left on device" in done.stderr.splitlines()[-1]
    assert "FetchError" not in done.stderr


@needs_root
def test_unpack_onto_a_full_disk_names_the_place_and_can_be_repeated(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSEMBLEKIT_CACHE", str(disk))
    target = disk / "servers" / "24.08"

    def make(draft: Path) -> None:
        (draft / "big").write_bytes(b"0" * 1024 * WHEEL_KIB)

    with pytest.raises(OSError, match="No space left on device") as caught:
        build_once(target, make)
    left = list(target.parent.iterdir())
    subprocess.run(["mount", "-o", f"remount,size={2 * WHEEL_KIB}k", disk], check=True)

    assert caught.value.filename == str(target.parent)
    assert left == []
    assert (build_once(target, make) / "big").stat().st_size == 1024 * WHEEL_KIB


@needs_root
def test_probe_with_its_cache_on_a_read_only_disk_is_one_clear_error(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    code, said = _kit("probe", "24.08", ENSEMBLEKIT_CACHE=str(disk / "cache"))

    assert code == 2, said
    assert _is_clear(said, "Read-only file system"), said


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_cache_that_cannot_be_made_is_one_clear_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    code, said = _kit("weights", ENSEMBLEKIT_CACHE=str(tmp_path / place))

    assert code == 2, said
    assert _is_clear(said, "Not a directory" if "below" in place else "File exists"), said


def test_set_up_on_a_full_disk_does_not_blame_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setup.messages.ROOT", str(tmp_path))
    pip = tmp_path / "bin" / "python"
    pip.parent.mkdir()
    pip.write_text("#!/bin/sh\necho 'ERROR: [Errno 28] No space left on device' >&2; exit 1\n")
    pip.chmod(0o755)

    with pytest.raises(SetupError) as error:
        installer.Installer(str(tmp_path), Log()).install("packages", [], 1, "install")

    assert str(error.value).endswith("Hint: " + installer.DISK_FULL_HINT)
    assert "proxy" not in str(error.value)
