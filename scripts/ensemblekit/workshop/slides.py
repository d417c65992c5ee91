# SPDX-License-Identifier: Apache-2.0
"""Slides from the lessons: a page for each heading, with its first words and its picture, in one HTML file."""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mistune
import nbformat

from ensemblekit.paths import repo_root

__all__ = ["write_slides"]

HEADING = re.compile(r"^#{1,2} +(.+)$", re.MULTILINE)
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>The ensemble kit</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark; }}
html {{ scroll-snap-type: y mandatory; font: 1.5rem/1.5 system-ui, sans-serif; }}
section {{ min-height: 100vh; padding: 6vh 8vw; box-sizing: border-box; scroll-snap-align: start; }}
h1 {{ font-size: 2.6rem; }} img {{ max-width: 100%; max-height: 60vh; background: #fff; }}
pre {{ font-size: 1rem; overflow-x: auto; }} footer {{ font-size: .9rem; opacity: .75; }}
</style>
{slides}</html>
"""


@dataclass
class _Slide:
    title: str
    words: str = ""
    picture: str = ""
    alt: str = ""

    def __str__(self) -> str:
        image = (
            f'<img alt="{html.escape(self.alt)}" src="data:image/png;base64,{self.picture}">' if self.picture else ""
        )
        return f"<h1>{html.escape(self.title)}</h1>{mistune.html(self.words)}{image}"


def write_slides(target: Path) -> int:
    """Write the slides of every lesson, in order, and return how many there are.

    Raises:
        OSError: The file cannot be written.
    """
    lessons = sorted((repo_root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    parts = [
        f"<section>{slide}<footer>{html.escape(path.stem)}</footer></section>"
        for path in lessons
        for slide in _slides(path)
    ]
    target.write_text(PAGE.format(slides="\n".join(parts)))
    return len(parts)


def _slides(path: Path) -> Iterator[_Slide]:
    slide: _Slide | None = None
    for cell in nbformat.read(path, as_version=4).cells:
        heading = HEADING.match(cell.source) if cell.cell_type == "markdown" else None
        if heading:
            if slide:
                yield slide
            words = cell.source[heading.end() :].strip().split("\n\n")[0]
            slide = _Slide(heading[1], words)
        elif slide and not slide.picture:
            slide.picture, slide.alt = _picture(cell)
    if slide:
        yield slide


def _picture(cell: nbformat.NotebookNode) -> tuple[str, str]:
    for output in cell.get("outputs", []):
        if picture := output.get("data", {}).get("image/png"):
            return picture.replace("\n", ""), output.metadata.get("image/png", {}).get("alt", "")
    return "", ""
