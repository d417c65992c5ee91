# SPDX-License-Identifier: Apache-2.0
"""The lessons with PROVIDER container on stand-in images: under papermill, and again under nbval; or embedded, said."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from ensemblekit.batch.notebooks import choose_notebooks, distribute
from ensemblekit.batch.runner import Run, run_lessons
from ensemblekit.records import read_records
from ensemblekit.releases import get_release
from ensemblekit.servers.container_engine import ENGINES
from ensemblekit.workarounds.base_image import remove_image
from tests.containers.engine import STAND_INS, Podman
from tests.notebooks.test_nbval import run_nbval

pytestmark = [pytest.mark.notebook, pytest.mark.slow]
LESSONS = ("03", "04", "05", "07")
AGAIN = "03_workaround_base_container"  # with nbval
WORKAROUND = "localhost/ensemblekit/tritonserver:24.08-base-plus-vllm"
CUSTOM_BUILD = "localhost/ensemblekit/tritonserver:24.08-custom-build"


@pytest.fixture
def stand_in_custom_build(settings: Podman) -> Iterator[None]:
    """The stand-in base under the name of a custom build: upstream's build.py needs hours."""
    settings.run("tag", f"{STAND_INS}:24.08-py3", CUSTOM_BUILD)
    yield
    settings.untag(CUSTOM_BUILD)
    remove_image(get_release("24.08"))


def run(folder: Path) -> Run:
    """Run the lessons with containers, without vLLM."""
    lessons = choose_notebooks(LESSONS)
    return run_lessons(lessons, distribute(lessons, {"PROVIDER": "container"}, quick=True), folder, quick=True)


def texts(notebook: Path) -> str:
    """What the cells of an executed notebook printed."""
    cells = nbformat.read(notebook, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_lessons_run_in_containers_and_run_again_the_same(
    stand_in_custom_build: None, tmp_path: Path, podman: Podman
) -> None:
    done = run(tmp_path / "first")

    print(*(f"{result.name}: {result.seconds:.0f} s" for result in done.results), sep="\n")
    assert [(result.name[:2], result.outcome) for result in done.results] == [(name, "passed") for name in LESSONS], [
        result.message for result in done.results
    ]
    records = read_records(tmp_path / "first")
    assert {str(record["provider"]) for record in records.values()} == {"container"}
    assert (
        "localhost/ensemblekit/tritonserver:24.08-base-plus-vllm" in records["03_workaround_base_container"]["images"]
    )  # type: ignore[operator]
    assert records["07_release_matrix"]["cells_run"] == 4
    again = run_nbval(tmp_path / "first" / "executed" / f"{AGAIN}.ipynb", tmp_path / "again")
    assert again.returncode == 0, again.stdout[-4000:]
    assert podman.state()["containers"] == []


def test_lesson_without_an_engine_runs_its_embedded_form_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"  # everything but the engines
    programs.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name not in ENGINES:
            (programs / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("ENSEMBLEKIT_ENGINE")
    lessons = choose_notebooks(["03"])

    done = run_lessons(lessons, distribute(lessons, {"PROVIDER": "container"}, quick=True), tmp_path / "run")

    assert [result.outcome for result in done.results] == ["passed"], done.results[0].message
    said = "No container engine: no docker and no podman on the PATH. This page runs its embedded form"
    assert texts(tmp_path / "run" / "executed" / f"{lessons[0].name}.ipynb").count(said) == 1
