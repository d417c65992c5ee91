# SPDX-License-Identifier: Apache-2.0
"""Reads package indexes without pip, with pip's settings: for a system that has no pip, and for the locks' hashes."""

import base64
import configparser
import hashlib
import os
import re
import ssl
import sys
from html import unescape
from typing import List, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener, pathname2url

PYPI = "https://pypi.org/simple"
TIMEOUT_S = 20
CONFIG_FILES = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")


class IndexFile(NamedTuple):
    """A file of a project as an index lists it."""

    name: str
    url: str
    sha256: str


def setting(name: str) -> str:
    """Return one of pip's settings, such as "index-url", "" where it is not set."""
    variable = "PIP_" + name.upper().replace("-", "_")
    if os.environ.get(variable):
        return os.environ[variable]
    value = ""
    files = [os.path.expanduser(path) for path in CONFIG_FILES] + [os.path.join(sys.prefix, "pip.conf")]
    files = [] if os.environ.get("PIP_CONFIG_FILE") == os.devnull else files + [os.environ.get("PIP_CONFIG_FILE", "")]
    for path in files:
        config = configparser.RawConfigParser()
        config.read(path)
        for section in ("global", "install"):
            value = config.get(section, name, fallback=value)
    return value


def index_urls() -> list:
    """Return the indexes that pip would ask."""
    return [setting("index-url") or PYPI] + setting("extra-index-url").split()


def list_files(project: str) -> List[IndexFile]:
    """Return the files of a project on the first index that answers.

    Raises:
        OSError: No index answers.
    """
    failures = []
    for index in index_urls():
        try:
            return _read_page("%s/%s/" % (index.rstrip("/"), project))
        except (OSError, ValueError) as error:
            failures.append("%s: %s" % (urlsplit(index).hostname or index, error))
    raise OSError("; ".join(failures))


def brought_files() -> List[IndexFile]:
    """Return the files in the folders that pip's setting find-links names."""
    folders = [folder for folder in setting("find-links").split() if os.path.isdir(folder)]
    paths = [os.path.abspath(os.path.join(folder, name)) for folder in folders for name in os.listdir(folder)]
    return [IndexFile(os.path.basename(path), "file://" + pathname2url(path), "") for path in paths]


def _open(url: str) -> tuple:
    """Open an address, with the name and password in it if there are some; return the answer and the plain address."""
    parts = urlsplit(url)
    plain = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    request = Request(plain, headers={"Accept": "text/html, */*;q=0.1"})
    if parts.username:
        login = "%s:%s" % (unquote(parts.username), unquote(parts.password or ""))
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    handlers = [HTTPSHandler(context=ssl.create_default_context(cafile=setting("cert") or None))]  # type: list
    if setting("proxy"):  # else those of the environment
        handlers.append(ProxyHandler(dict.fromkeys(("http", "https"), setting("proxy"))))
    return build_opener(*handlers).open(request, timeout=TIMEOUT_S), url


def _read_page(url: str) -> List[IndexFile]:
    answer, url = _open(url)
    with answer:
        links = re.findall(r"""href\s*=\s*["']([^"']+)""", answer.read().decode())
    found = []
    for target, fragment in (urldefrag(urljoin(url, unescape(link))) for link in links):
        digest = fragment[len("sha256=") :] if fragment.startswith("sha256=") else ""
        found.append(IndexFile(unquote(target.rsplit("/", 1)[1]), target, digest))
    return found


def locked_hashes(pin: str) -> list:
    """Return the sha256 hashes of a pin of a lock."""
    return [one.strip() for one in pin.split("--hash=sha256:")[1:]]


def fetch_locked(pin: str, folder: str) -> str:
    """Fetch the wheel of a pin for this system, compare it with the pin's hashes, and return its path.

    Raises:
        OSError: No index answers.
        ValueError: No wheel fits, or the file is another than the locked one.
    """
    project, version = pin.split()[0].split("==")
    for list_them in (brought_files, lambda: list_files(project)):
        fitting = [one for one in list_them() if is_for_this_system(one.name, project, version)]
        for file in (one for one in fitting if one.name.endswith(".whl")):
            with _open(file.url)[0] as answer:
                content = answer.read()
            if hashlib.sha256(content).hexdigest() not in locked_hashes(pin):
                raise ValueError("%s is another file than the locked one" % file.name)
            path = os.path.join(folder, file.name)
            with open(path, "wb") as target:
                target.write(content)
            return path
    raise ValueError("the index has no %s %s for this system" % (project, version))


def is_for_this_system(name: str, project: str, version: str) -> bool:
    """Return whether a file is a version's source or a wheel of it for CPython 3.11 or 3.12 on Linux x86-64."""
    stem = project.replace("-", "_")
    if name.endswith((".tar.gz", ".zip")):
        return name.lower().replace("-", "_").replace(".", "_").startswith("%s_%s_" % (stem, version.replace(".", "_")))
    parts = name[: -len(".whl")].split("-")
    if not name.endswith(".whl") or (parts[0].lower().replace(".", "_"), parts[1]) != (stem, version):
        return False
    python, abi, platform = parts[-3:]
    fits_python = abi == "abi3" or any(re.match(r"py3\d*$|cp31[12]$", tag) for tag in python.split("."))
    fits_platform = platform == "any" or any(
        tag.endswith("x86_64") and "linux" in tag and "musl" not in tag for tag in platform.split(".")
    )
    return fits_python and fits_platform
