# SPDX-License-Identifier: Apache-2.0
"""The container column of the release matrix: the images that are here are run, the others say why not."""

from pathlib import Path

import pytest

from ensemblekit.matrix.run import run_matrix

pytestmark = [pytest.mark.slow]


def test_container_column_runs_what_is_here_and_says_what_is_not(settings: object) -> None:
    result = run_matrix(providers=["container"], releases=["24.08", "24.10"], flavours=["vllm-image", "custom-build"])

    assert [(cell.release, cell.flavour, cell.state) for cell in result.cells] == [
        ("24.08", "vllm-image", "refused"),
        ("24.08", "custom-build", "not run"),
        ("24.10", "vllm-image", "answered"),
        ("24.10", "custom-build", "not run"),
    ]
    assert not result.unexpected
    assert result.cells[1].detail == (
        "the image localhost/ensemblekit/tritonserver:24.08-custom-build is not on this machine"
    )


def test_container_column_without_an_engine_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ENSEMBLEKIT_ENGINE")

    result = run_matrix(providers=["container"], releases=["24.08"])

    assert {cell.detail for cell in result.cells} == {"no docker and no podman on the PATH"}
