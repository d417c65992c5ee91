# SPDX-License-Identifier: Apache-2.0
"""Make a lesson in another language: its code cells and outputs, with other texts between them.

The texts of a lesson are one file, `notebooks/zh/03_....md`: before each stands a line `<!-- cell: 03-05 -->` with
the id of the cell that it takes the place of.
"""

import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from ensemblekit.batch.exercises import different
from ensemblekit.errors import RepositoryError

__all__ = ["LANGUAGE", "outdated_translations", "read_texts", "translated", "write_translations"]

LANGUAGE = "zh"  # its folder under notebooks/
MARK = re.compile(r"^<!-- cell: (\S+) -->\n", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|\.\./|#)([^)]+)\)")  # to a page beside the lesson


def read_texts(path: Path) -> dict[str, str]:
    """Return the texts of a lesson by cell id.

    Raises:
        RepositoryError: A cell stands in it twice.
    """
    parts = MARK.split(path.read_text(encoding="utf-8"))[1:]
    ids, texts = parts[::2], [text.strip() for text in parts[1::2]]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        raise RepositoryError(f"read {path.name}", found=f"cell {twice[0]} twice", hint="keep one of the two texts")
    return dict(zip(ids, texts, strict=True))


def translated(
    lesson: NotebookNode, texts: dict[str, str], name: str, translated_too: frozenset[str] = frozenset()
) -> NotebookNode:
    """Return a lesson with other texts; code cells and outputs stay as they are.

    Args:
        lesson: The lesson.
        texts: What its text cells say, by id.
        name: Its file name, for errors.
        translated_too: The file names of lessons to which links stay in this language.

    Raises:
        RepositoryError: A text is missing, or belongs to no cell.
    """
    made = nbformat.from_dict(lesson)
    wanted = {cell.id for cell in made.cells if cell.cell_type == "markdown"}
    if wrong := sorted(wanted ^ texts.keys()):
        what = "no text for" if wrong[0] in wanted else "a text for a cell that is not there:"
        raise RepositoryError(f"translate {name}", found=f"{what} {wrong[0]}", hint="each text cell has one text")

    def beside(link: re.Match[str]) -> str:
        """Return a link to a page as the folder below sees it: the translation, where there is one."""
        return f"]({link[1]})" if link[1] in translated_too else f"](../{link[1]})"

    for cell in made.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(beside, texts[cell.id])
    return made


def _made(lessons: Path, language: str) -> dict[str, str]:
    texts, paths = {}, sorted((lessons / language).glob("*.md"))
    names = frozenset(f"{path.stem}.ipynb" for path in paths)
    for path in paths:
        name = f"{path.stem}.ipynb"
        lesson = nbformat.read(lessons / name, as_version=4)
        texts[name] = nbformat.writes(translated(lesson, read_texts(path), name, names)) + "\n"
    return texts


def write_translations(lessons: Path, language: str) -> list[str]:
    """Write the notebook of every text file of a language and return the names of those that changed.

    Raises:
        RepositoryError: A text does not fit its lesson.
        OSError: A file cannot be read or written.
    """
    made = _made(lessons, language)
    outdated = different(made, lessons / language)
    for name in outdated:
        if name in made:
            (lessons / language / name).write_text(made[name], encoding="utf-8")
        else:
            (lessons / language / name).unlink()
    return outdated


def outdated_translations(lessons: Path, language: str) -> list[str]:
    """Return the names of notebooks in a language that are not what their lessons and texts make now.

    Raises:
        RepositoryError: A text does not fit its lesson.
        OSError: A file cannot be read.
    """
    return different(_made(lessons, language), lessons / language)
