# SPDX-License-Identifier: Apache-2.0
"""The embedded column of the release matrix, every server of it started for real."""

import json
from pathlib import Path

import pytest

from ensemblekit.matrix.run import run_matrix
from ensemblekit.paths import RUN_DIR_VARIABLE

pytestmark = [pytest.mark.server, pytest.mark.slow]
REFUSED = {("24.07", "vllm-image"), ("24.08", "vllm-image"), ("24.09", "vllm-image")}


def test_embedded_column_fails_and_answers_exactly_as_the_releases_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path))

    result = run_matrix()

    assert len(result.ran) == len(result.cells) == 12
    assert {(cell.release, cell.flavour) for cell in result.cells if cell.state == "refused"} == REFUSED
    assert not result.unexpected, result
    cells = json.loads((tmp_path / "matrix.json").read_text())["cells"]
    assert [cell["verdict"] for cell in cells] == [cell.verdict for cell in result.cells]
