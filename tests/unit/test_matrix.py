# SPDX-License-Identifier: Apache-2.0
"""The release matrix as values: verdicts, text, file and picture. Nothing is started here."""

import json
from pathlib import Path

import pytest
from matplotlib.patches import FancyBboxPatch

from ensemblekit.errors import ParameterError
from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from ensemblekit.matrix.picture import plot_matrix
from ensemblekit.matrix.run import Cell, MatrixResult, State, run_matrix
from ensemblekit.releases import documented_releases


def a_cell(release: str, state: State, detail: str = "") -> Cell:
    """A cell of the vllm-image flavour."""
    return Cell(release, "vllm-image", "embedded", "stand-in", state, detail, 1.5)


@pytest.mark.parametrize(
    ("cell", "verdict"),
    [
        (a_cell("24.08", "refused", ENSEMBLE_REFUSED), "as expected"),
        (a_cell("24.08", "refused", "another line"), "UNEXPECTED"),
        (a_cell("24.08", "answered"), "UNEXPECTED"),
        (a_cell("24.10", "answered"), "as expected"),
        (a_cell("24.10", "failed"), "UNEXPECTED"),
        (a_cell("24.10", "not run"), "not run"),
    ],
    ids=["refused", "refused-otherwise", "answers-too-early", "answers", "fails", "not-run"],
)
def test_verdict_compares_with_the_release_table(cell: Cell, verdict: str) -> None:
    assert cell.verdict == verdict


def test_matrix_is_written_with_its_verdicts(tmp_path: Path) -> None:
    result = MatrixResult((a_cell("24.08", "refused", ENSEMBLE_REFUSED), a_cell("24.10", "answered", "Paris")))

    cells = json.loads(result.write(tmp_path / "matrix.json").read_text())["cells"]

    assert [(cell["state"], cell["detail"], cell["verdict"]) for cell in cells] == [
        ("refused", ENSEMBLE_REFUSED, "as expected"),
        ("answered", "Paris", "as expected"),
    ]


def test_text_holds_no_times() -> None:
    assert "1.5" not in str(MatrixResult((a_cell("24.10", "answered"),)))


def test_picture_has_a_box_for_each_cell() -> None:
    result = MatrixResult((a_cell("24.08", "refused", ENSEMBLE_REFUSED), a_cell("24.10", "not run")))

    boxes = [patch for patch in plot_matrix(result).axes[0].patches if isinstance(patch, FancyBboxPatch)]

    assert len(boxes) == 2


def test_picture_draws_what_was_only_documented_apart_from_what_was_run() -> None:
    result = MatrixResult((a_cell("24.10", "answered"),))

    run, documented = plot_matrix(result, documented_releases()).axes

    assert [text.get_text() for text in documented.texts] == [row.name for row in documented_releases()]
    assert "not run here" in documented.get_title(loc="left")
    styles = {patch.get_linestyle() for patch in documented.patches}
    assert styles.isdisjoint(patch.get_linestyle() for patch in run.patches if isinstance(patch, FancyBboxPatch))


@pytest.mark.parametrize(
    "choice", [{"flavours": ["x"]}, {"providers": ["x"]}, {"engine": "x"}, {"releases": ["23.01"]}]
)
def test_unknown_choice_is_refused_before_anything_starts(choice: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=r"Hint: choose one of"):
        run_matrix(**choice)  # type: ignore[arg-type]
