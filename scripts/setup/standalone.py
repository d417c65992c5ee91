# SPDX-License-Identifier: Apache-2.0
"""A standalone Python 3.12 (python-build-standalone) in the kit's cache, fetched with uv.

It carries its own libpython, venv and pip. uv itself comes from the package index, in the version and with the hash of
env/locks/uv.txt. uv reads its mirrors from UV_PYTHON_INSTALL_MIRROR and UV_PYTHON_DOWNLOADS_JSON_URL.
"""

import glob
import os
import shutil
import tempfile
import zipfile
from typing import Callable, Optional

from setup.commands import Log
from setup.index import fetch_locked, setting
from setup.locks import lock_pins
from setup.messages import Phase, SetupError, say

VERSION = "3.12"
SIZE_TEXT = "some 50 MB"  # uv's wheel and the archive; an estimate
MIRROR_HINT = "name a mirror of python-build-standalone in UV_PYTHON_INSTALL_MIRROR, a package index in PIP_INDEX_URL"
ATTEMPTED = "fetch a standalone Python " + VERSION


def cache_folder() -> str:
    """Return the kit's cache, as ensemblekit.paths names it."""
    usual = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ensemblekit")
    return os.path.realpath(os.path.expanduser(os.environ.get("ENSEMBLEKIT_CACHE") or usual))


def standalone_python(why: str, log: Log) -> str:
    """Return the path of a standalone Python: fetched before, or fetched now, which it says.

    Raises:
        SetupError: uv or the Python cannot be fetched.
    """
    folder = os.path.join(cache_folder(), "python")
    if _installed(folder):
        return _installed(folder)
    say("%s: fetching a standalone Python %s (%s) into %s" % (why, VERSION, SIZE_TEXT, folder))
    phase = Phase("python")
    words = ["python", "install", VERSION, "--install-dir", folder]
    words += ["--managed-python", "--no-bin", "--no-cache", "--no-progress"]
    run_uv(words, log, ATTEMPTED, MIRROR_HINT, lambda start: phase.show(0, 0, "fetching"))
    python = _installed(folder)
    if not python:
        raise SetupError(ATTEMPTED, "uv left none in %s" % folder, MIRROR_HINT, log.path)
    phase.end("standalone %s fetched with uv" % python[len(folder) + 1 :].split("-linux")[0])
    return python


def run_uv(words: list, log: Log, attempted: str, hint: str, watch: Optional[Callable] = None) -> None:
    """Run uv, with the certificates and the proxy of pip's settings.

    Raises:
        SetupError: uv cannot be fetched, or fails.
    """
    settings = {"SSL_CERT_FILE": setting("cert"), "ALL_PROXY": setting("proxy")}
    settings = {name: value for name, value in settings.items() if value}
    log.run([uv_program(log)] + words + ["--no-config"], attempted, hint, watch, **settings)


def _installed(folder: str) -> str:
    """Return the newest Python of this version that uv left in a folder, "" if there is none."""
    found = glob.glob(os.path.join(folder, "cpython-%s.*" % VERSION, "bin", "python" + VERSION))
    return max(found, default="", key=os.path.getmtime)


def uv_program(log: Log) -> str:
    """Return the path of the locked uv, fetched from the package index if it is not in the cache.

    Raises:
        SetupError: No index has it, or another file under its name.
    """
    pin = lock_pins("uv")[0]
    program = os.path.join(cache_folder(), "uv", pin.split()[0].split("==")[1], "uv")
    if os.path.exists(program):
        return program
    os.makedirs(os.path.dirname(program), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(program)) as draft:
        try:
            wheel = fetch_locked(pin, draft)
        except (OSError, ValueError) as error:
            log.note(["fetching uv: %s" % error])
            raise SetupError(ATTEMPTED, "uv cannot be fetched: %s" % error, MIRROR_HINT) from None
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [name for name in archive.namelist() if name.endswith("/scripts/uv")]
            with archive.open(member) as source, open(os.path.join(draft, "uv"), "wb") as target:
                shutil.copyfileobj(source, target)
        os.chmod(os.path.join(draft, "uv"), 0o755)
        os.replace(os.path.join(draft, "uv"), program)
    return program
