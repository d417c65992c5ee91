# SPDX-License-Identifier: Apache-2.0
"""A reader's own copy of the pages: made once, never overwritten, reset one by one; and the start page."""

import re
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner

from ensemblekit.batch.notebooks import choose_notebooks
from ensemblekit.cli.main import app
from ensemblekit.errors import ParameterError
from ensemblekit.lesson.lab import (
    START_PAGE,
    WORK_VARIABLE,
    make_working_copy,
    recorded_times,
    reset_notebook,
    work_dir,
)
from ensemblekit.paths import repo_root

LESSON = "03_workaround_base_container.ipynb"
EXERCISE = "exercises/01_find_the_reason_in_a_log.ipynb"
CHINESE = "zh/01_reproduce_the_failure.ipynb"
SHELL = re.compile(r"`ensemblekit [a-z]|^ensemblekit [a-z]", re.MULTILINE)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working copy."""
    monkeypatch.setenv(WORK_VARIABLE, str(tmp_path / "work"))
    make_working_copy(work_dir())
    return work_dir()


def test_work_holds_every_page_and_nothing_else_but_the_start_page_and_the_guide(work: Path) -> None:
    pages = [path.relative_to(work) for path in work.rglob("*") if path.is_file()]

    notebooks = repo_root() / "notebooks"
    originals = [page.path for page in choose_notebooks(["", "exercises", "solutions"])] + [
        *notebooks.glob("zh/*.ipynb")
    ]
    assert {str(page) for page in pages if page.suffix == ".ipynb"} == {START_PAGE} | {
        str(path.relative_to(notebooks)) for path in originals
    }
    assert {page.name for page in pages if page.suffix != ".ipynb"} <= {
        "guide.md",
        "feedback.md",
        "glossary.md",
        "upgrading.md",
    }


def test_work_made_again_leaves_answers_alone(work: Path) -> None:
    (work / EXERCISE).write_text("mine")

    make_working_copy(work)

    assert (work / EXERCISE).read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "page"),
    [("03", LESSON), ("exercises/01", EXERCISE), ("zh/01_reproduce_the_failure", CHINESE)],
    ids=["lesson", "exercise", "Chinese lesson"],
)
def test_page_reset_is_the_kits_and_the_old_one_is_kept(work: Path, name: str, page: str) -> None:
    (work / page).write_text("mine")

    fresh, kept = reset_notebook(name, work)

    assert kept is not None
    assert kept.is_relative_to(work / "old")
    assert kept.read_text() == "mine"
    assert fresh == work / page
    assert (work / page).read_bytes() == (repo_root() / "notebooks" / page).read_bytes()


def test_page_that_does_not_exist_is_not_reset(work: Path) -> None:
    with pytest.raises(ParameterError, match="choose the lesson"):
        reset_notebook("77", work)


def test_lab_reset_only_resets(work: Path) -> None:
    done = CliRunner().invoke(app, ["lab", "--reset", "03"])

    assert done.exit_code == 0
    assert "is as delivered; yours is kept as" in done.output


def test_start_page_links_lead_somewhere_and_it_has_a_picture(work: Path) -> None:
    cells = nbformat.read(work / START_PAGE, as_version=4).cells
    text = "\n".join(cell.source for cell in cells)
    links = re.findall(r"\]\(([\w./-]+)\)", text)

    assert len(links) > 20
    assert [link for link in links if not (work / link).is_file()] == []
    assert "```mermaid" in text


def test_times_are_those_of_the_recorded_run_and_a_page_without_one_says_so(work: Path) -> None:
    recorded = recorded_times()
    pages = {page.name for page in choose_notebooks(["", "exercises", "solutions"])}
    rows = nbformat.read(work / START_PAGE, as_version=4).cells[-1].source

    assert set(recorded["seconds"]) <= pages
    for lesson in choose_notebooks():
        seconds = recorded["seconds"].get(lesson.name)
        said = "not measured" if seconds is None else f"{seconds:.0f} s"
        assert re.search(rf"{lesson.path.name}.*\| {said} \|", rows)
    assert recorded["measured"] in rows


def test_pages_print_commands_that_a_shell_in_the_kits_folder_finds() -> None:
    wrong = [
        f"{page.name}: {line}"
        for page in choose_notebooks(["", "exercises", "solutions"])
        for cell in page.content.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if SHELL.search(line)
    ]
    assert wrong == []
