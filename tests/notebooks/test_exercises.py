# SPDX-License-Identifier: Apache-2.0
"""An exercise that nobody has solved says what is missing, in the words of its check."""

from pathlib import Path

import pytest

from ensemblekit.batch.exercises import exercises_dir
from ensemblekit.batch.notebooks import choose_notebooks
from ensemblekit.batch.runner import run_lessons

CELL_TIMEOUT_S = 300.0
pytestmark = [pytest.mark.notebook, pytest.mark.server]


def test_unsolved_exercise_stops_at_its_first_check(tmp_path: Path) -> None:
    exercise = choose_notebooks(["02"], folder=exercises_dir())

    (result,) = run_lessons(exercise, {}, tmp_path, quick=True, cell_timeout_s=CELL_TIMEOUT_S).results

    assert result.outcome == "failed"
    assert "Could not confirm that the server can read the configuration." in result.message
    assert "fill in the cell marked Your turn" in result.message
