# SPDX-License-Identifier: Apache-2.0
"""The form of a lesson: order of its parts, closed tags, typed parameters, checked cells that really check."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from ensemblekit.batch.exercises import exercises_dir, outdated_exercises, solutions_dir
from ensemblekit.lesson.lab import recorded_times
from ensemblekit.paths import repo_root
from tests.notebooks.conftest import LESSONS, NOTEBOOKS, SOLUTIONS
from tests.notebooks.record_times import places

TAGS = {
    "parameters", "nbval-check-output", "nbval-ignore-output", "nbval-skip", "skip-execution", "solution",
    "hide-output",
}  # fmt: skip
LONGEST_CELL = 20  # lines; more is a helper function
CHECKED_CELLS = range(3, 20)
VOLATILE = re.compile(r"127\.0\.0\.1:\d|\bpid\b|/home/|/root/|/tmp/|/work/|\d+\.\d+ s\b|0x[0-9a-f]{6,}")

Cells = list[nbformat.NotebookNode]


def _tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _code(cells: Cells) -> Cells:
    return [cell for cell in cells if cell.cell_type == "code"]


def _headings(cells: Cells) -> list[str]:
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"^#+ .*$", text, flags=re.MULTILINE)


def test_times_that_pages_and_readmes_say_are_those_of_the_recorded_run() -> None:
    """`python -m tests.notebooks.record_times RUN` writes them."""
    said = list(places(recorded_times()))

    assert {path.name for path, _pattern, _length in said} >= {path.name for path in NOTEBOOKS} | {"README.zh.md"}
    for path, pattern, length in said:
        assert re.findall(pattern, path.read_text()) == [length], (path.name, pattern)


def test_notebooks_are_found() -> None:
    assert len(LESSONS) >= 7
    assert len(SOLUTIONS) >= 3


def test_title_names_the_device_it_needs(cells: Cells) -> None:
    assert re.fullmatch(r"# .+ \((CPU|GPU|CPU or GPU)\)", cells[0].source)


def test_overview_lists_the_sections_in_order(cells: Cells) -> None:
    bullets = [line[2:].strip().casefold() for line in cells[1].source.splitlines() if line.startswith("- ")]
    sections = [
        heading[3:].strip().replace("`", "").casefold() for heading in _headings(cells) if heading.startswith("## ")
    ]
    assert 3 <= len(bullets) <= 7
    assert [bullet.replace("`", "") for bullet in bullets] == sections[: len(bullets)]
    assert sections[len(bullets) :] == ["summary", "additional resources"]
    assert sum(heading.startswith("# ") for heading in _headings(cells)) == 1


def test_prerequisites_say_time_memory_and_download(cells: Cells) -> None:
    assert all(word in cells[2].source for word in ("| Prerequisite |", "**Time**", "**GPU memory**", "**Download**"))


def test_parameters_cell_is_typed_and_literal(cells: Cells) -> None:
    tagged = [cell for cell in cells if "parameters" in _tags(cell)]
    assert len(tagged) == 1
    assert _code(cells)[0] is tagged[0]
    for statement, line in zip(ast.parse(tagged[0].source).body, tagged[0].source.splitlines(), strict=True):
        assert isinstance(statement, ast.AnnAssign)
        assert isinstance(statement.target, ast.Name)
        assert statement.target.id == statement.target.id.upper()
        ast.literal_eval(statement.value)  # type: ignore[arg-type]
        assert "  # " in line, f"no comment with unit or legal values: {line}"


def test_tags_are_of_the_closed_list(cells: Cells) -> None:
    for cell in cells:
        assert _tags(cell) <= TAGS
        assert ("nbval-skip" in _tags(cell)) == ("skip-execution" in _tags(cell))


def test_cells_are_short(cells: Cells) -> None:
    assert max(len(cell.source.splitlines()) for cell in _code(cells)) <= LONGEST_CELL


def test_start_that_may_have_to_be_repeated_is_in_no_compared_cell(cells: Cells) -> None:
    """Triton's own crash at the end of a failed start is said in the cell's output, now and then."""
    compared = [cell.source for cell in _code(cells) if "nbval-check-output" in _tags(cell)]

    assert [source for source in compared if ".attempt_start(" in source] == []


def test_checked_cells_have_output_and_count(cells: Cells) -> None:
    checked = [cell for cell in _code(cells) if "nbval-check-output" in _tags(cell)]
    assert len(checked) in CHECKED_CELLS
    for cell in checked:
        assert cell.outputs, f"nothing to compare: {cell.source}"
        assert cell.execution_count is not None


def test_no_output_is_an_error_or_a_warning(cells: Cells) -> None:
    for cell in _code(cells):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.get("text")


def test_checked_outputs_hold_nothing_volatile(cells: Cells) -> None:
    for cell in _code(cells):
        if "nbval-check-output" in _tags(cell):
            text = "".join(
                output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in cell.outputs
            )
            assert not VOLATILE.search(text), text


def test_outputs_hold_no_path_of_the_machine_they_were_made_on(cells: Cells) -> None:
    text = "".join(str(cell.get("outputs", "")) for cell in cells)
    assert not re.search(r"/(home|root|work|tmp)/", text)


def test_outputs_hold_no_progress_line(cells: Cells) -> None:
    texts = [output.data.get("text/markdown") for cell in _code(cells) for output in cell.outputs if "data" in output]
    assert not [text for text in texts if text is not None and re.fullmatch(r"|.* … \d+ s.*", text)]


def test_no_shell_magic_decides_a_result(cells: Cells) -> None:
    for cell in _code(cells):
        assert not re.search(r"^\s*[!%]", cell.source, flags=re.MULTILINE)


def test_lesson_ends_with_record_summary_and_next(cells: Cells) -> None:
    assert "lesson.record(" in "".join(cell.source for cell in _code(cells)[-2:])
    assert cells[-1].source.startswith("## Summary")
    assert "### What's next?" in cells[-1].source


def test_links_between_lessons_lead_somewhere(notebook: Path, cells: Cells) -> None:
    for cell in cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([\w./-]+\.(?:ipynb|md))\)", cell.source):
                assert (notebook.parent / target).is_file(), target


def test_kernel_name_is_python3(notebook: Path) -> None:
    assert nbformat.read(notebook, as_version=4).metadata.kernelspec.name == "python3"


def test_readme_lists_exactly_the_notebooks() -> None:
    listed = re.findall(r"\(notebooks/([\w]+\.ipynb)\)", (repo_root() / "README.md").read_text())
    assert sorted(set(listed)) == [path.name for path in LESSONS]


def test_solution_marks_the_cells_to_solve_and_no_others() -> None:
    for path in SOLUTIONS:
        cells = nbformat.read(path, as_version=4).cells
        assert any("solution" in _tags(cell) for cell in _code(cells)), path.name
        for cell in _code(cells):
            assert ("solution" in _tags(cell)) == ("# solution" in cell.source.splitlines()), cell.source


def test_exercises_are_what_their_solutions_make() -> None:
    outdated = outdated_exercises(solutions_dir(), exercises_dir())
    assert not outdated, f"run `ensemblekit exercises`: {', '.join(outdated)}"


@pytest.mark.parametrize("name", ["pypi", "files.pythonhosted"])
def test_no_registry_host_stands_in_a_notebook(name: str) -> None:
    assert not [path.name for path in NOTEBOOKS if f"{name}.org" in path.read_text()]


def test_every_picture_has_an_alternative_text_of_its_own(cells: Cells) -> None:
    outputs = [output for cell in _code(cells) for output in cell.outputs if "image/png" in output.get("data", {})]
    texts = [output.metadata.get("image/png", {}).get("alt", "") for output in outputs]
    assert all(len(text.split()) >= 5 for text in texts), texts
    assert len(set(texts)) == len(texts)


def test_page_asks_twice_and_hides_its_answers(cells: Cells) -> None:
    asked = [place for place, cell in enumerate(cells) if "**Check yourself.**" in cell.source]
    assert len(asked) >= 2
    assert asked[-1] - asked[0] >= len(cells) // 5, "spread them over the page"
    for cell in cells:
        if "Answer</summary>" in cell.source:
            assert cell.source.count("<details>") == cell.source.count("</details>") >= 1
            assert cell.source.split("<details>")[0].rstrip().endswith(("?", "say?"))


def test_last_page_of_a_part_has_a_quiz() -> None:
    quizzes = [path.stem[:2] for path in LESSONS if "**Quiz on " in path.read_text()]
    assert quizzes == ["02", "05", "10"]


def test_solution_and_exercise_lead_to_each_other() -> None:
    for path in SOLUTIONS:
        assert f"(../exercises/{path.name})" in path.read_text()
        assert f"(../solutions/{path.name})" in (exercises_dir() / path.name).read_text()


def test_exercise_shows_no_answer_before_it_is_asked() -> None:
    for path in SOLUTIONS:
        exercise = nbformat.read(exercises_dir() / path.name, as_version=4)
        text = "\n".join(cell.source for cell in exercise.cells)
        for answer in ("JSONDecodeError", "TYPE_STRING", 'max_tokens": 6', '"seed"', "data_type = 13"):
            assert answer not in text, f"{path.name}: {answer}"
