# SPDX-License-Identifier: Apache-2.0
"""Names for folders that Triton can hand to a shell.

Triton starts the process of a Python model with `bash -c "exec STUB MODEL ..."` and quotes neither (stub_launcher.cc of
the Python backend), so that a blank or an umlaut in the path of a checkout keeps every Python model from loading.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from pathlib import Path

from ensemblekit.paths import cache_dir

__all__ = ["plain_path"]

PLAIN = re.compile(r"[A-Za-z0-9_./+=@%:,-]+")


def plain_path(folder: Path) -> Path:
    """Return the folder itself if a shell reads its path as one word, else a link to it that has such a path.

    The link has the same name for the same folder, and stays: it stands in the kit's cache, or among temporary files
    where the path of the cache is no plain one either.

    Raises:
        OSError: The link cannot be made.

    >>> plain_path(Path("/srv/models"))
    PosixPath('/srv/models')
    """
    if PLAIN.fullmatch(str(folder)):
        return folder
    target = folder.resolve()
    link = _links() / hashlib.sha256(os.fsencode(target)).hexdigest()[:12]
    if not link.is_symlink() or link.readlink() != target:
        draft = link.with_name(f"{link.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        draft.symlink_to(target)
        draft.replace(link)  # at once, whoever else makes the same
    return link


def _links() -> Path:
    folder = cache_dir() / "paths"
    if not PLAIN.fullmatch(str(folder)):
        folder = Path(tempfile.gettempdir()) / f"ensemblekit-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder
