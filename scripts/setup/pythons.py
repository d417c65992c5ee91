# SPDX-License-Identifier: Apache-2.0
"""Which Python the environment is made with: one that is there and fits, else a standalone one that is fetched.

That one (python-build-standalone, fetched with uv into the kit's cache) carries its own libpython, venv and pip. uv
itself comes from the package index, in the version and with the hash of env/locks/uv.txt. uv reads its mirrors from
UV_PYTHON_INSTALL_MIRROR and UV_PYTHON_DOWNLOADS_JSON_URL.
"""

import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from typing import Callable, Optional

from setup import PYTHON_VARIABLE, PYTHONS
from setup.index import fetch_locked, setting
from setup.locks import BUNDLE, lock_pins
from setup.messages import Log, Phase, SetupError, say

ANSWER_TIMEOUT_S = 30
# Triton's Python stub is linked against libpython; the kit looks for it in the same places (servers/embedded.py)
ASK_PYTHON = """
import importlib.util as u, json, os, sys, sysconfig
v = '%d.%d' % sys.version_info[:2]
library = 'libpython%s.so.1.0' % v
folders = [sysconfig.get_config_var('LIBDIR') or '', os.path.join(sys.base_prefix, 'lib')]
found = any(os.path.isfile(os.path.join(folder, library)) for folder in folders)
if not found:
    from ctypes.util import find_library
    found = bool(find_library('python' + v))
venv = bool(u.find_spec('venv') and u.find_spec('ensurepip'))
print(json.dumps({'path': sys.executable, 'short': v, 'version': sys.version.split()[0],
                  'venv': venv, 'libpython': found}))
"""
INSTALL_HINT = (
    "install one: `sudo apt install python3.11 python3.11-venv libpython3.11` (Debian 12), "
    "`sudo apt install python3.12 python3.12-venv libpython3.12` (Ubuntu 24.04) or "
    "`conda create -n py312 python=3.12`; if it is not on the PATH, name it: %s=/path/to/python3.12. In a closed "
    "network: name mirrors in UV_PYTHON_INSTALL_MIRROR and PIP_INDEX_URL, or carry a bundle with a Python here "
    "(`ensemblekit bundle create --python-archive` on a machine that has a network)" % PYTHON_VARIABLE
)
VERSION = "3.12"
SIZE_TEXT = "some 50 MB"  # uv's wheel and the archive; an estimate
MIRROR_HINT = "name a mirror of python-build-standalone in UV_PYTHON_INSTALL_MIRROR, a package index in PIP_INDEX_URL"
ATTEMPTED = "fetch a standalone Python " + VERSION
BROUGHT = os.path.join(BUNDLE, "python", "bin", "python3")  # by a bundle made with --python-archive


def ask_python(path: str) -> dict:
    """Return what an interpreter says about itself, or that it does not start."""
    try:
        answer = subprocess.run(
            [path, "-I", "-c", ASK_PYTHON],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=ANSWER_TIMEOUT_S,
        )
        return json.loads(answer.stdout.decode())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {"path": path, "short": "", "version": "does not start", "venv": False, "libpython": False}


def candidate_pythons(gpu: bool) -> list:
    """Return the interpreters to try: the one asked for, or what a bundle brought, the one running this, the PATH's."""
    if os.environ.get(PYTHON_VARIABLE):
        return [os.environ[PYTHON_VARIABLE]]
    on_path = [shutil.which("python" + version) for version in reversed(PYTHONS)]
    paths = [BROUGHT if os.path.exists(BROUGHT) else None, sys.executable] + on_path
    if gpu:  # cuda.txt was resolved for 3.12
        paths.insert(1, on_path[0])
    first = {os.path.realpath(path): path for path in reversed(paths) if path}  # two names of one are asked once
    return [path for path in paths if path and first[os.path.realpath(path)] == path]


def shortcoming(python: dict) -> str:
    """Return why the kit cannot use an interpreter, "" if it can."""
    if python["short"] not in PYTHONS:
        return "is Python %s" % python["version"] if python["short"] else python["version"]
    if not python["venv"]:
        return "has no venv or ensurepip module"
    return "" if python["libpython"] else "has no libpython%s.so.1.0" % python["short"]


def find_python(gpu: bool, log: Log) -> dict:
    """Return the interpreter to use, as `ask_python` describes it; a standalone one where none that is there fits.

    Raises:
        SetupError: None fits, and none can be fetched.
    """
    seen, failed = [], None
    for path in candidate_pythons(gpu):
        seen.append(ask_python(path))
        if not shortcoming(seen[-1]):
            return seen[-1]
    if not os.environ.get(PYTHON_VARIABLE):
        try:
            return _fetched_python(seen, log)
        except SetupError as error:
            failed = error
    lame = [python for python in seen if python["short"] in PYTHONS and python["venv"]]
    if not lame:
        raise _refusal(seen, failed)
    if failed:
        say(str(failed))
    # what needs no Python model in the kit's own server still works
    say("Going on with %(path)s, without libpython%(short)s.so.1.0: Triton cannot start Python models." % lame[0])
    say("Hint: sudo apt install libpython%(short)s" % lame[0])
    return lame[0]


def _fetched_python(seen: list, log: Log) -> dict:
    why = "; ".join("%s %s" % (python["path"], shortcoming(python)) for python in seen)
    python = ask_python(standalone_python(why, log))
    if shortcoming(python):
        found = "%s %s" % (python["path"], shortcoming(python))
        raise SetupError("use the standalone Python", found, "delete its folder and run again")
    return python


def _refusal(seen: list, failed: Optional[SetupError]) -> SetupError:
    """Return the error that says what was found, and every way to get a Python."""
    fetched = "; a standalone one could not be fetched (%s)" % failed.found if failed else ""
    log_path = failed.log_path if failed else ""
    unfit = [one for one in seen if one["short"] in PYTHONS]
    if unfit:
        found = "%s has no venv or ensurepip module" % unfit[0]["path"]
        hint = "sudo apt install python{0}-venv libpython{0}; or {1}".format(unfit[0]["short"], INSTALL_HINT)
        return SetupError("make a virtual environment", found + fetched, hint, log_path)
    found = ", ".join("%s (%s)" % (one["path"], one["version"]) for one in seen)
    missing = [v for v in PYTHONS if not any(one["path"].endswith("python" + v) for one in seen)]
    nowhere = "; no python%s on the PATH" % " and no python".join(missing) if missing else ""
    return SetupError("find Python 3.11 or 3.12", found + nowhere + fetched, INSTALL_HINT, log_path)


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
