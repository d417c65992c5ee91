# SPDX-License-Identifier: Apache-2.0
"""Answers to the exercises: no wrong one is accepted and each gets a hint of its own, every right one is accepted."""

import re
from pathlib import Path

import pytest

from ensemblekit.batch.exercises import exercises_dir, solutions_dir
from ensemblekit.checks.task import FILL_IN
from ensemblekit.paths import RUN_DIR_VARIABLE
from tests.notebooks.harness import ANSWERS, judged, run_cells, shared_lesson

EXERCISES = sorted(path.stem for path in solutions_dir().glob("*.ipynb"))
WRONG_EACH = 10
LONGEST_MESSAGE = 8  # lines
BAD_GRAMMAR = re.compile(r"Found: it does|that and ", re.IGNORECASE)


def test_list_has_ten_wrong_answers_for_each_exercise_and_right_ones_besides() -> None:
    assert sorted(ANSWERS) == EXERCISES
    for exercise, answers in ANSWERS.items():
        assert len(answers["wrong"]) >= WRONG_EACH, exercise
        assert len(answers["right"]) >= 3, exercise
        assert len({(one["cell"], one["answer"]) for one in answers["wrong"]}) == len(answers["wrong"])


@pytest.mark.notebook
@pytest.mark.server
@pytest.mark.parametrize("exercise", EXERCISES)
def test_answers_are_judged_as_they_should_be(exercise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One server serves all answers of an exercise; a repository of another content needs another."""
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
    problems = []
    with shared_lesson(exercise, monkeypatch) as lesson:
        assert run_cells(exercise, {}) == ""
        for one in ANSWERS[exercise]["wrong"]:
            said = judged(lesson, exercise, {one["cell"]: one["answer"]})
            hinted = said.partition("\nHint: ")[2]
            if one["hint"] not in said or not hinted or FILL_IN in said or BAD_GRAMMAR.search(said):
                problems.append(f"{one['answer']}\n  wanted: {one['hint']}\n  said: {said or 'accepted'}")
            if len(said.splitlines()) > LONGEST_MESSAGE:
                problems.append(f"{one['answer']}: {said}")
        problems += [
            f"{one['answer']}\n  right, but refused: {said}"
            for one in ANSWERS[exercise]["right"]
            if (said := judged(lesson, exercise, {one["cell"]: one["answer"]}))
        ]
    assert not problems, "\n".join(problems)


@pytest.mark.notebook
@pytest.mark.server
@pytest.mark.parametrize("exercise", EXERCISES)
def test_untouched_cell_asks_to_be_filled_in(exercise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task in turn is left as the exercise has it, with those before it solved."""
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
    untouched = {cell.id: cell.source for cell in _cells(exercises_dir() / f"{exercise}.ipynb")}
    solved = [cell for cell in _cells(solutions_dir() / f"{exercise}.ipynb") if "# solution" in cell.source]
    with shared_lesson(exercise, monkeypatch) as lesson:
        for cell in solved:
            assert "# Your turn" in untouched[cell.id], cell.id
            said = judged(lesson, exercise, {cell.id: f"\n{untouched[cell.id]}"})
            assert FILL_IN in said, f"{cell.id}: {said}"
            assert len(said.splitlines()) == 3, said


def _cells(path: Path) -> list[object]:
    import nbformat

    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
