# SPDX-License-Identifier: Apache-2.0
"""A lesson in another language has the lesson's own code, and a text for each of its texts."""

import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ensemblekit.batch.translate import LANGUAGE, outdated_translations, read_texts, translated
from ensemblekit.errors import RepositoryError
from ensemblekit.paths import repo_root

LESSONS = repo_root() / "notebooks"
TEXTS = sorted((LESSONS / LANGUAGE).glob("*.md"))
TRANSLATED = {"00", "01", "02", "03", "04", "05", "06"}


def test_lessons_00_to_06_have_a_text() -> None:
    assert {path.name[:2] for path in TEXTS} == TRANSLATED


def test_translations_are_what_lessons_and_texts_make() -> None:
    assert not outdated_translations(LESSONS, LANGUAGE), "run `ensemblekit exercises`"


@pytest.mark.parametrize("path", TEXTS, ids=[path.stem for path in TEXTS])
def test_translation_has_the_code_and_the_structure_of_its_lesson(path: Path) -> None:
    lesson = nbformat.read(LESSONS / f"{path.stem}.ipynb", as_version=4)
    chinese = nbformat.read(path.with_suffix(".ipynb"), as_version=4)

    assert [cell.id for cell in chinese.cells] == [cell.id for cell in lesson.cells]
    for mine, theirs in zip(chinese.cells, lesson.cells, strict=True):
        if mine.cell_type == "code":
            assert mine == theirs
        else:
            for mark in ("\n## ", "\n- ", "<details>", "```", "| --- |", "](https:"):
                assert mine.source.count(mark) == theirs.source.count(mark), f"{mine.id}: {mark!r}"


def test_text_that_is_missing_or_too_many_is_an_error() -> None:
    lesson = new_notebook(cells=[new_markdown_cell("Why?", id="a"), new_code_cell("1", id="b")])

    assert translated(lesson, {"a": "[x](02.ipynb)"}, "one.ipynb").cells[0].source == "[x](../02.ipynb)"
    with pytest.raises(RepositoryError, match="no text for a"):
        translated(lesson, {}, "one.ipynb")
    with pytest.raises(RepositoryError, match="not there: z"):
        translated(lesson, {"a": "", "z": ""}, "one.ipynb")


def test_cell_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("<!-- cell: a -->\n1\n<!-- cell: a -->\n2\n")

    with pytest.raises(RepositoryError, match="cell a twice"):
        read_texts(tmp_path / "x.md")


FENCED = re.compile(r"```.*?```", re.DOTALL)
TARGET = re.compile(r"\]\(([^)]*)\)")
READMES = ("README.md", "README.zh.md")


@pytest.mark.parametrize("equal", [r"^#+ ", r"^\d\. ", r"^    .*$", r"`[^`\n]+`", r"\d+(?:\.\w+)*", r"^\||^!\["])
def test_readme_has_the_same_structure_commands_and_numbers_in_both_languages(equal: str) -> None:
    english, chinese = ((repo_root() / name).read_text() for name in READMES)
    bare = [TARGET.sub("]", FENCED.sub("", text)) for text in (chinese, english)]
    mine, theirs = (Counter(re.findall(equal, text, re.MULTILINE | re.ASCII)) for text in bare)

    assert theirs
    assert mine == theirs
    assert FENCED.findall(chinese) == FENCED.findall(english)


def test_chinese_readme_links_to_the_pages_of_the_english_one_and_to_the_chinese_where_there_is_one() -> None:
    english, chinese = (set(TARGET.findall((repo_root() / name).read_text())) for name in READMES)
    pages = {link for link in chinese if not link.startswith(("#", "https:"))}

    assert all((repo_root() / page).is_file() for page in pages)
    assert {f"notebooks/zh/{path.stem}.ipynb" for path in TEXTS} <= pages
    assert not {f"notebooks/{path.stem}.ipynb" for path in TEXTS} & pages
    assert {page.replace("/zh/", "/") for page in pages - set(READMES)} == {
        link for link in english - set(READMES) if not link.startswith(("#", "https:"))
    }
