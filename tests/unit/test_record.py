# SPDX-License-Identifier: Apache-2.0
"""Records are written as JSON and read back."""

from pathlib import Path

import pytest

from ensemblekit.errors import ParameterError
from ensemblekit.paths import RUN_DIR_VARIABLE
from ensemblekit.records import read_records, record_values


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run."""
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))
    return tmp_path


def test_record_values_are_read_back_by_lesson(run_dir: Path) -> None:
    record_values("01", {"seconds": 1.5, "models": ["a"]})

    assert read_records(run_dir) == {"01": {"seconds": 1.5, "models": ["a"]}}


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "infinite"])
def test_record_values_not_finite_is_refused(run_dir: Path, value: float) -> None:
    with pytest.raises(ParameterError, match="record seconds"):
        record_values("01", {"seconds": value})


def test_read_records_of_a_run_without_any_is_empty(run_dir: Path) -> None:
    assert read_records(run_dir) == {}
