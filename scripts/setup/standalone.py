# SPDX-License-Identifier: Apache-2.0
"""A standalone Python 3.12 (python-build-standalone) in the kit's cache, fetched with uv, or brought by a bundle.

It carries its own libpython, venv and pip. uv itself comes from the package index, in the version and with the hash of
env/locks/uv.txt. uv reads its mirrors from UV_PYTHON_INSTALL_MIRROR and UV_PYTHON_DOWNLOADS_JSON_URL.
"""

import glob
import importlib.util
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile

from setup.commands import Log
from setup.index import fetch_locked
from setup.locks import BUNDLE, LOCKS, lock_pins, read_bundle
from setup.messages import Phase, SetupError, say

VERSION = "3.12"
SIZE_TEXT = "some 50 MB"  # uv's wheel and the archive; an estimate
MIRROR_HINT = (
    "name a mirror of python-build-standalone in UV_PYTHON_INSTALL_MIRROR, or `sudo apt install python3.12 "
    "python3.12-venv libpython3.12`, or `conda create -n py312 python=3.12`, or carry a bundle here "
    "(`ensemblekit bundle create` where there is a network)"
)
ATTEMPTED = "fetch a standalone Python " + VERSION


def cache_folder() -> str:
    """Return the kit's cache, as ensemblekit.paths names it."""
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ensemblekit")
    return os.path.realpath(os.path.expanduser(os.environ.get("ENSEMBLEKIT_CACHE") or usual))


def standalone_python(why: str, log: Log) -> str:
    """Return the path of a standalone Python: fetched before, brought by the bundle, or fetched now, which it says."""
    folder = os.path.join(cache_folder(), "python")
    if not _installed(folder):
        brought = read_bundle().get("python_archive")
        if brought:
            _unpack(os.path.join(BUNDLE, brought), folder)
        else:
            say("%s: fetching a standalone Python %s (%s) into %s" % (why, VERSION, SIZE_TEXT, folder))
            _fetch(folder, log)
    return _installed(folder)


def _installed(folder: str) -> str:
    """Return the newest Python of this version in a folder, "" if there is none; uv and archives nest differently."""
    pattern = os.path.join(folder, "cpython-%s.*" % VERSION)
    found = glob.glob(os.path.join(pattern, "bin", "python" + VERSION))
    found += glob.glob(os.path.join(pattern, "python", "bin", "python" + VERSION))
    return max(found, default="", key=os.path.getmtime)


def _unpack(archive: str, folder: str) -> None:
    """Unpack an archive of the kind `install_only`, whole or not at all."""
    phase = Phase("python")
    os.makedirs(folder, exist_ok=True)
    options = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        with tarfile.open(archive) as content:
            content.extractall(draft, **options)
        os.rename(draft, os.path.join(folder, os.path.basename(archive).split("-x86_64")[0]))
        os.mkdir(draft)  # for the end of this block
    phase.end("standalone %s of the bundle unpacked" % VERSION)


def _fetch(folder: str, log: Log) -> None:
    phase = Phase("python")
    command = [uv_program(log), "python", "install", VERSION, "--install-dir", folder]
    command += ["--managed-python", "--no-bin", "--no-config", "--no-cache", "--no-progress"]
    log.run(command, ATTEMPTED, MIRROR_HINT, lambda start: phase.show(0, 0, "fetching"))
    if not _installed(folder):
        raise SetupError(ATTEMPTED, "uv left none in %s" % folder, MIRROR_HINT, log.path)
    phase.end("standalone %s fetched with uv" % os.path.basename(os.path.dirname(os.path.dirname(_installed(folder)))))


def uv_program(log: Log) -> str:
    """Return the path of the locked uv, from the package index if it is not in the cache: by pip if there is one."""
    pin = lock_pins("uv")[0]
    program = os.path.join(cache_folder(), "uv", pin.split()[0].split("==")[1], "uv")
    if os.path.exists(program):
        return program
    os.makedirs(os.path.dirname(program), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(program)) as draft:
        if importlib.util.find_spec("pip"):
            command = [sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
            command += ["--require-hashes", "-r", os.path.join(LOCKS, "uv.txt"), "--dest", draft, "--retries", "1"]
            log.run(command, ATTEMPTED, MIRROR_HINT)
        else:  # Debian's and Ubuntu's own Python has none
            try:
                fetch_locked(pin, draft)
            except (OSError, ValueError) as error:
                raise SetupError(ATTEMPTED, "uv is not to be had: %s" % error, MIRROR_HINT) from None
        wheels = glob.glob(os.path.join(draft, "*.whl"))
        if not wheels:
            raise SetupError(ATTEMPTED, "pip fetched no wheel of uv", MIRROR_HINT, log.path)
        with zipfile.ZipFile(wheels[0]) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith("/scripts/uv")]
            with archive.open(member) as source, open(os.path.join(draft, "uv"), "wb") as target:
                shutil.copyfileobj(source, target)
        os.chmod(os.path.join(draft, "uv"), 0o755)
        os.replace(os.path.join(draft, "uv"), program)
    return program
