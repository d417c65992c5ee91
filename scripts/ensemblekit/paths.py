# SPDX-License-Identifier: Apache-2.0
"""Where things live (the repository, the per-user cache, the folder of a run), and the variables that say so.

Nothing here looks at the current folder: nbval and papermill start kernels in different ones.
"""

import os
import secrets
from datetime import datetime
from functools import cache
from pathlib import Path

import platformdirs

from ensemblekit.errors import UnsupportedMachine

__all__ = [
    "BATCH_VARIABLE",
    "CACHE_VARIABLE",
    "RUN_DIR_VARIABLE",
    "cache_dir",
    "current_run_dir",
    "new_run_id",
    "repo_root",
    "runs_dir",
]

BATCH_VARIABLE = "ENSEMBLEKIT_BATCH"  # set by batch runs, which show progress of their own
CACHE_VARIABLE = "ENSEMBLEKIT_CACHE"
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
    """
    override = os.environ.get(CACHE_VARIABLE)
    path = Path(override).expanduser() if override else Path(platformdirs.user_cache_dir("ensemblekit"))
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def runs_dir() -> Path:
    """Return `runs/` of the checkout, which git ignores.

    Raises:
        UnsupportedMachine: See `repo_root`.
    """
    return repo_root() / "runs"


def new_run_id(label: str) -> str:
    """Return a fresh run id such as `20260101-120000-quick-3f9a`: sorts by time, unique."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{label}-{secrets.token_hex(2)}"


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
