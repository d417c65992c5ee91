# SPDX-License-Identifier: Apache-2.0
"""The models of env/retrieval, staged: the embedding model gets its weights, the index is made from the kit's pages."""

import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ensemblekit.assets.embedding import ensure_embedding
from ensemblekit.paths import repo_root

__all__ = ["RETRIEVAL_BLS", "add_retrieval", "load_encoder", "read_passages"]

RETRIEVAL_BLS = "retrieval_bls"
PAGES = ("glossary.md", "upgrading.md")
LEAST_LETTERS = 40  # of a passage: shorter ones are the heads of tables
LINK, MARKS = re.compile(r"\[([^\]]*)\]\([^)]*\)"), re.compile(r"[|*`\s]+")


def add_retrieval(target: Path, *, bls: bool) -> None:
    """Add the models of env/retrieval to a staged repository, with their weights and an index of the kit's pages.

    Args:
        target: The repository; it has `preprocess`, `llm` and `postprocess`.
        bls: Whether the pipeline's BLS form comes too.

    Raises:
        FetchError: The embedding model cannot be fetched.
    """
    left_out = () if bls else (RETRIEVAL_BLS,)
    ignored = shutil.ignore_patterns("__pycache__", *left_out)
    shutil.copytree(repo_root() / "env" / "retrieval", target, ignore=ignored, dirs_exist_ok=True)
    if bls:
        shutil.copytree(target / "answer" / "1", target / RETRIEVAL_BLS / "1")
    for file in ensure_embedding().glob("*.*"):
        shutil.copy(file, target / "embed" / "1")
    rows = [row for page in PAGES for row in read_passages(repo_root() / "notebooks" / page)]
    encoder = load_encoder(target / "embed" / "1")
    passages, sources = zip(*rows, strict=True)
    vectors = np.stack([encoder.encode(passage) for passage in passages])
    np.savez(target / "retrieve" / "1" / "index.npz", vectors=vectors, passages=passages, sources=sources)


def load_encoder(folder: Path) -> Any:
    """Return the encoder of a staged `embed`: the index has to be made by the code that later reads the questions.

    Raises:
        OSError: It is not there.
    """
    return runpy.run_path(str(folder / "encoder.py"))["Encoder"](folder)


def read_passages(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the passages of a Markdown page, each row of a table and each paragraph, and where each one stands.

    Raises:
        OSError: The page cannot be read.
    """
    heading, paragraph = "", list[str]()
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if line and not line.startswith(("|", "#")):
            paragraph.append(line)
            continue
        for text, row in ((" ".join(paragraph), ""), (line, line.split("|")[1] if line.startswith("|") else "")):
            passage = _plain(text)
            if len(passage) >= LEAST_LETTERS and not text.startswith("#"):
                yield passage, ", ".join(part for part in (page.name, heading, _plain(row)) if part)
        paragraph = []
        heading = line.lstrip("# ") if line.startswith("#") else heading


def _plain(text: str) -> str:
    return MARKS.sub(" ", LINK.sub(r"\1", text)).strip()
