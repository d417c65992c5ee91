# SPDX-License-Identifier: Apache-2.0
"""Where things live (the repository, the per-user cache, the folder of a run), and the variables that say so.

Nothing here looks at the current folder: nbval and papermill start kernels in different ones.
"""

import grp
import os
import pwd
import secrets
import stat
import tempfile
from datetime import datetime
from functools import cache
from pathlib import Path

from ensemblekit.errors import UnsupportedMachine

__all__ = [
    "BATCH_VARIABLE",
    "BUNDLE_FOLDER",
    "CACHE_VARIABLE",
    "PAGE_VARIABLE",
    "RUN_DIR_VARIABLE",
    "cache_dir",
    "current_run_dir",
    "new_run_id",
    "repo_root",
    "runs_dir",
    "temporary_dir",
]

BATCH_VARIABLE = "ENSEMBLEKIT_BATCH"  # set by batch runs, which show progress of their own
BUNDLE_FOLDER = "bundle"  # in a kit that came as a bundle: the wheels that it brought
CACHE_VARIABLE = "ENSEMBLEKIT_CACHE"
PAGE_VARIABLE = "ENSEMBLEKIT_PAGE"  # which page a batch run executes: a lesson's name stands in two languages
RUN_DIR_VARIABLE = "ENSEMBLEKIT_RUN_DIR"


@cache
def repo_root() -> Path:
    """Return the root of the kit's checkout (the folder with `model_repo/` and `env/`).

    Raises:
        UnsupportedMachine: The package was installed without its checkout (not with `pip install -e`).
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "env" / "releases.toml").is_file():
        raise UnsupportedMachine(
            "find the kit's checkout",
            found=f"no env/releases.toml under {root}",
            hint="clone the repository and install from inside it with `pip install -e .`, or use scripts/run",
        )
    return root


def cache_dir() -> Path:
    """Return the per-user cache (wheels, unpacked servers, checkpoints); made if missing.

    `ENSEMBLEKIT_CACHE` overrides the platform's own place.

    Raises:
        OSError: The folder cannot be made.
        UnsupportedMachine: Others can write to it: what the kit runs comes from there.
    """
    import platformdirs

    override = os.environ.get(CACHE_VARIABLE)
    path = Path(override).expanduser() if override else Path(platformdirs.user_cache_dir("ensemblekit"))
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if others := _others_that_write(path.stat()):
        raise UnsupportedMachine(
            f"use the cache {path}",
            found=f"{others}, and the kit runs what stands there",
            hint=f"`chmod go-w {path}` if its content can be trusted, or name another folder in {CACHE_VARIABLE}",
        )
    return path.resolve()


def _others_that_write(found: os.stat_result) -> str:
    """Return who else can write to a folder, empty if nobody can but this user and root."""
    if found.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {found.st_uid}"
    if found.st_mode & stat.S_IWOTH:
        return f"its mode is {stat.S_IMODE(found.st_mode):03o}: every user can write to it"
    if found.st_mode & stat.S_IWGRP and found.st_gid != 0 and not _is_own_group(found.st_gid):
        return f"its mode is {stat.S_IMODE(found.st_mode):03o}: the group {found.st_gid} can write to it"
    return ""


def _is_own_group(group: int) -> bool:
    """Return whether a group is a user's private one, as most systems give each user."""
    try:
        user, members = pwd.getpwuid(os.geteuid()), grp.getgrgid(group).gr_mem
    except KeyError:
        return False
    return user.pw_gid == group and set(members) <= {user.pw_name}


def runs_dir() -> Path:
    """Return `runs/` of the checkout, which git ignores.

    Raises:
        UnsupportedMachine: See `repo_root`.
    """
    return repo_root() / "runs"


def new_run_id(label: str) -> str:
    """Return a fresh run id such as `20260101-120000-quick-3f9a`: sorts by time, unique."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{label}-{secrets.token_hex(2)}"


def temporary_dir() -> Path:
    """Return the folder for temporary files.

    Raises:
        UnsupportedMachine: Nothing can be written to any of those that the system has.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UnsupportedMachine(
            "use a folder for temporary files",
            found=str(error.strerror),
            hint="are they full or read-only? Name a folder that you can write to in TMPDIR",
        ) from error


def current_run_dir() -> Path:
    """Return the folder of this run: the batch run's, else one for this process; made if missing.

    Raises:
        OSError: The folder cannot be made.
    """
    if RUN_DIR_VARIABLE not in os.environ:
        os.environ[RUN_DIR_VARIABLE] = str(runs_dir() / new_run_id("lab"))
    path = Path(os.environ[RUN_DIR_VARIABLE])
    path.mkdir(parents=True, exist_ok=True)
    return path
