# SPDX-License-Identifier: Apache-2.0
"""What an exercise keeps of its solution: names and function heads, and nothing that gives the answer away."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ensemblekit.batch.exercises import exercise_from, outdated_exercises, write_exercises
from ensemblekit.errors import RepositoryError

SOLVED = """# Your turn: set `reason`.
# solution
reason = next(line for line in lines if line.level == "E")
left, right = 1, 2
passing = left + right"""
USES = new_code_cell("print(reason, left, right)")


def _solution(source: str, *tags: str) -> nbformat.NotebookNode:
    return new_code_cell(source, metadata={"tags": ["solution", *tags]})


def test_exercise_solution_cell_keeps_the_text_above_the_mark_and_names_that_others_use() -> None:
    exercise = exercise_from(new_notebook(cells=[_solution(SOLVED), USES]), "one.ipynb")

    assert exercise.cells[0].source == "# Your turn: set `reason`.\nreason = ...\nleft = ...\nright = ..."


def test_exercise_function_keeps_its_head_and_docstring() -> None:
    source = '# solution\ndef loud(text, *, times=1) -> bytes:\n    """Return it loud."""\n    return text.upper()'

    exercise = exercise_from(new_notebook(cells=[_solution(source)]), "one.ipynb")

    assert exercise.cells[0].source == ('def loud(text, *, times=1) -> bytes:\n    """Return it loud."""\n    ...')


def test_exercise_of_statements_without_names_is_one_ellipsis() -> None:
    exercise = exercise_from(new_notebook(cells=[_solution("# Fix it.\n# solution\nconfig.platform = 'x'")]), "a.ipynb")

    assert exercise.cells[0].source == "# Fix it.\n..."


def test_exercise_has_no_outputs_no_counts_and_no_solution_tags() -> None:
    cell = _solution(SOLVED, "nbval-check-output")
    cell.outputs, cell.execution_count = [new_output("stream", text="the answer")], 3

    made = exercise_from(new_notebook(cells=[cell]), "one.ipynb").cells[0]

    assert (made.outputs, made.execution_count, made.metadata.get("tags", [])) == ([], None, [])


def test_exercise_leaves_out_markdown_of_the_solution_and_ends_with_a_link_to_it() -> None:
    told = new_markdown_cell("Because of this.", metadata={"tags": ["solution"]})

    exercise = exercise_from(new_notebook(cells=[new_markdown_cell("Why?"), told]), "one.ipynb")

    assert [cell.source for cell in exercise.cells][:1] == ["Why?"]
    assert len(exercise.cells) == 2
    assert "../solutions/one.ipynb" in exercise.cells[-1].source


def test_solution_cell_without_a_mark_is_an_error() -> None:
    with pytest.raises(RepositoryError, match=r"(?s)one\.ipynb.*no line `# solution`"):
        exercise_from(new_notebook(cells=[_solution("reason = 1")]), "one.ipynb")


def test_written_exercises_are_current_until_a_solution_changes(tmp_path: Path) -> None:
    solutions, exercises = tmp_path / "solutions", tmp_path / "exercises"
    solutions.mkdir()
    for name in ("01_one", "02_gone"):
        nbformat.write(new_notebook(cells=[_solution(SOLVED)]), solutions / f"{name}.ipynb")
    write_exercises(solutions, exercises)
    (solutions / "02_gone.ipynb").unlink()
    assert outdated_exercises(solutions, exercises) == ["02_gone.ipynb"]

    write_exercises(solutions, exercises)

    assert outdated_exercises(solutions, exercises) == []
    assert [path.name for path in exercises.iterdir()] == ["01_one.ipynb"]
    nbformat.write(new_notebook(cells=[_solution("# And now?\n" + SOLVED)]), solutions / "01_one.ipynb")
    assert outdated_exercises(solutions, exercises) == ["01_one.ipynb"]


def test_exercise_with_answers_is_kept_and_begun_anew_only_on_request(tmp_path: Path) -> None:
    solutions, exercises = tmp_path / "solutions", tmp_path / "exercises"
    solutions.mkdir()
    nbformat.write(new_notebook(cells=[_solution(SOLVED)]), solutions / "01_one.ipynb")
    write_exercises(solutions, exercises)
    mine = nbformat.read(exercises / "01_one.ipynb", as_version=4)
    mine.cells[0].source = "reason = 7"
    nbformat.write(mine, exercises / "01_one.ipynb")

    kept = write_exercises(solutions, exercises)

    assert ([path.name for path in kept.kept], kept.written) == (["01_one.ipynb"], ())
    assert "reason = 7" in (exercises / "01_one.ipynb").read_text()

    fresh = write_exercises(solutions, exercises, fresh=["01"])

    assert [path.name for path in fresh.moved] == ["01_one.answers-1.ipynb"]
    assert "reason = 7" in fresh.moved[0].read_text()
    assert outdated_exercises(solutions, exercises) == []


def test_exercise_that_was_only_run_or_is_no_notebook_is_kept(tmp_path: Path) -> None:
    solutions, exercises = tmp_path / "solutions", tmp_path / "exercises"
    solutions.mkdir()
    nbformat.write(new_notebook(cells=[_solution(SOLVED)]), solutions / "01_one.ipynb")
    write_exercises(solutions, exercises)
    (exercises / "02_own.ipynb").write_text("no notebook")

    assert [path.name for path in write_exercises(solutions, exercises).kept] == ["02_own.ipynb"]

    ran = nbformat.read(exercises / "01_one.ipynb", as_version=4)
    ran.cells[0].execution_count = 1
    nbformat.write(ran, exercises / "01_one.ipynb")
    assert len(write_exercises(solutions, exercises).kept) == 2
