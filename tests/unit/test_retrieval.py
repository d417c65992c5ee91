# SPDX-License-Identifier: Apache-2.0
"""Retrieval without a server: the word pieces, the passages of a page, and which of them a question finds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemblekit.repository.retrieval import load_encoder, read_passages
from ensemblekit.repository.stage import stage_repository

QUESTIONS = {
    "What does decoupled mean?": "glossary.md, Glossary, decoupled",
    "Which process runs a Python model?": "glossary.md, Glossary, stub",
    "How do I get the same random text twice?": "glossary.md, Glossary, seed",
    "How can one engine be spread over many GPUs?": "glossary.md, Glossary, tensor parallel",
    "Which driver does CUDA 13 need?": "upgrading.md, Before anything starts, 25.08",
    "What happened to the TensorFlow backend?": "upgrading.md, Before anything starts, 25.03",
    "Is numpy 2 safe to use in a Python model?": "upgrading.md, Before anything starts, 24.11",
    "What became of beam search?": "upgrading.md, Requests, 25.01",
    "Is guided decoding still there?": "upgrading.md, Requests, 25.11",
    "Does pipeline parallelism work with KIND_GPU?": "upgrading.md, The step with vLLM, 26.01",
}
# of "två smörgåsar" and a smiling face, whose letters are in part no pieces
BYTE_BY_BYTE = [259, 16148, 29871, 1560, 1340, 29887, 30020, 29879, 279, 29871, 243, 162, 155, 131, 13]


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The retrieval repository, staged."""
    folder = tmp_path_factory.mktemp("retrieval") / "models"
    return stage_repository(folder, source=None, device="cpu", retrieval=True).path


@pytest.fixture(scope="module")
def encoder(staged: Path) -> Any:
    """The encoder of the staged `embed`."""
    return load_encoder(staged / "embed" / "1")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("What is an ensemble?", [1724, 338, 385, 21285, 29973]),
        ("  två  smörgåsar \U0001f600\n", BYTE_BY_BYTE),
    ],
    ids=["words", "bytes"],
)
def test_word_pieces_are_those_of_the_package(encoder: Any, text: str, numbers: list[int]) -> None:
    """As the package tokenizers cuts them with the same file."""
    assert encoder.tokenize(text) == numbers


@pytest.mark.parametrize("question", QUESTIONS)
def test_question_finds_its_passage_first(staged: Path, encoder: Any, question: str) -> None:
    with np.load(staged / "retrieve" / "1" / "index.npz") as index:
        best = int(np.argmax(index["vectors"] @ encoder.encode(question)))

        assert index["sources"][best] == QUESTIONS[question]


def test_page_gives_rows_and_paragraphs_without_links_and_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\nA first paragraph that goes\nover two lines, with [a link](https://example.org).\n\n"
        "## Part\n| word | meaning |\n| --- | --- |\n| **seed** | The `number` from which sampling starts here. |\n"
        "| x | short |\n\nToo short.\n"
    )

    assert list(read_passages(page)) == [
        ("A first paragraph that goes over two lines, with a link.", "page.md, Title"),
        ("seed The number from which sampling starts here.", "page.md, Part, seed"),
    ]


def test_staged_repository_is_whole_and_has_no_other_pipeline(staged: Path) -> None:
    models = {folder.name for folder in staged.iterdir()}

    assert models == {"embed", "retrieve", "prompt", "preprocess", "answer", "llm", "postprocess", "retrieval"}
    assert (staged / "embed" / "1" / "l2_supercat_256.safetensors").is_file()
