# SPDX-License-Identifier: Apache-2.0
"""Which form of a lesson can run here, said in one line. Docker is a stand-in that knows which images it has."""

import os
from pathlib import Path

import pytest

from ensemblekit.lesson.providers import usable_provider
from tests.conftest import DATA


@pytest.fixture
def stand_in_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the stand-in docker first on PATH; its images are files in the folder."""
    monkeypatch.setenv("PATH", f"{DATA / 'stand_in_build'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_DOCKER", str(tmp_path))
    monkeypatch.setenv("ENSEMBLEKIT_ENGINE", "docker")
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.mark.parametrize("provider", ["embedded", "attach"])
def test_other_providers_stay_and_nothing_is_said(provider: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert usable_provider(provider, "24.08", "custom-build") == provider
    assert capsys.readouterr().out == ""


def test_without_an_engine_the_embedded_form_runs_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ENSEMBLEKIT_ENGINE", raising=False)

    assert usable_provider("container", "24.08", "custom-build") == "embedded"
    assert capsys.readouterr().out == (
        "No container engine: no docker and no podman on the PATH. "
        "This page runs its embedded form: the same server, out of its PyPI wheel.\n"
    )


def test_stand_in_docker_without_the_built_image_the_embedded_form_runs(
    stand_in_docker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert usable_provider("container", "24.08", "custom-build") == "embedded"
    assert "tritonserver:24.08-custom-build has not been built on this machine" in capsys.readouterr().out


def test_stand_in_docker_with_the_built_image_the_container_form_runs(
    stand_in_docker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stand_in_docker / "localhost_ensemblekit_tritonserver_24.08-custom-build").write_text("sha256:1\n")

    assert usable_provider("container", "24.08", "custom-build") == "container"
    assert capsys.readouterr().out == ""


def test_stand_in_docker_an_image_that_can_be_pulled_is_no_reason(stand_in_docker: Path) -> None:
    assert usable_provider("container", "24.10", "vllm-image") == "container"
