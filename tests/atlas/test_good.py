# SPDX-License-Identifier: Apache-2.0
"""No false alarms: good repositories get no error, and those of Python models are loaded; so is what `--fix` made."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemblekit.assets.weights import ModelSource
from ensemblekit.clients.http import model_states
from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.diagnose.lint.fix import corrections
from ensemblekit.releases import FLAVOURS, Flavour, get_release, has_ensembles, list_releases
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.process import TritonServer
from tests.atlas.cases import ATLAS
from tests.atlas.measure import ask, copy_repository, new_server
from tests.conftest import DATA

GOOD = sorted((ATLAS / "good").iterdir())
NOT_HERE = {"backends", "vllm"}  # of backends that the embedded servers do not have
ASKED = (
    "bls",
    "platform_typo",
    "warmup",
    "no_version_folder",
    "completed",
    "nested_outer",
    "optional",
    "policies",
    "versions",
)
START_TIMEOUT_S = 120.0  # 35 models
# the faults that `--fix` corrects; the same server must load what it made of them
FIXABLE = (
    "E102-platform-typo",
    "E103-platform-python",
    "E104-backend-ensemble",
    "E105-platform-and-backend",
    "E106-no-platform",
    "E109-instance-group",
    "E109-warmup",
    "E115-name-and-folder",
    "E207-no-version-folder",
)
FIXABLE_VLLM = ("E218-parallel-on-one-gpu", "E220-vllm-batches", "E220-vllm-not-decoupled")


@pytest.mark.parametrize("flavour", [None, *FLAVOURS], ids=str)
@pytest.mark.parametrize("repository", GOOD, ids=lambda path: path.name)
def test_good_repository_gets_no_error_and_no_warning(repository: Path, flavour: Flavour | None) -> None:
    report = lint_repository(repository, release="24.10", flavour=flavour)

    expected = {"T313"} if (repository.name, flavour) == ("backends", "vllm-image") else set()
    assert {finding.code for finding in report.findings if finding.severity != "note"} == expected
    assert report.exit_code == 0


@pytest.mark.parametrize("release", [release.name for release in list_releases()])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_kit_s_own_repository_gets_only_e101_and_only_where_it_is_true(
    release: str, flavour: Flavour, model_repo: Path
) -> None:
    report = lint_repository(model_repo, release=release, flavour=flavour)

    refused = not has_ensembles(get_release(release), flavour)
    assert [finding.code for finding in report.errors] == (["E101"] if refused else [])
    assert not report.of("warning")


@pytest.mark.parametrize(
    "source", [None, ModelSource("folder", "folder/tokenizer", local=True)], ids=["stand-in", "vllm"]
)
def test_staged_repository_gets_neither_error_nor_warning(source: ModelSource | None, tmp_path: Path) -> None:
    stage_repository(tmp_path / "staged", source=source, device="cpu")

    report = lint_repository(tmp_path / "staged")

    assert not report.errors
    assert not report.of("warning")


@pytest.mark.parametrize("name", ["report_repository", "decoupled_repository"])
def test_repositories_of_the_other_tests_get_no_error(name: str) -> None:
    assert not lint_repository(DATA / name).errors


def _fixed(name: str, folder: Path) -> Path:
    """Return a copy of a faulty repository, corrected by lint."""
    shutil.copytree(ATLAS / "faults" / name, folder)
    for correction in corrections(lint_repository(folder)):
        correction.apply()
    return folder


@pytest.mark.parametrize("name", [*FIXABLE, *FIXABLE_VLLM])
def test_safe_correction_leaves_no_error(name: str, tmp_path: Path) -> None:
    report = lint_repository(_fixed(name, tmp_path / "fixed"))

    assert not report.errors
    assert not corrections(report)


@pytest.mark.parametrize("repository", sorted((ATLAS / "faults").iterdir()), ids=lambda path: path.name)
def test_every_other_fault_is_left_to_its_reader(repository: Path) -> None:
    made = corrections(lint_repository(repository))

    assert bool(made) == (repository.name in (*FIXABLE, *FIXABLE_VLLM))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that has to load all good repositories of Python models, or does not start."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "repository").mkdir()
    for repository in GOOD:
        if repository.name not in NOT_HERE:
            copy_repository(repository, folder / "repository")
    for name in FIXABLE:
        copy_repository(_fixed(name, folder / "fixed" / name), folder / "repository")
    server = new_server(folder / "repository", folder, "24.08")
    yield server.start(START_TIMEOUT_S)
    server.stop()


@pytest.mark.server
@pytest.mark.parametrize("model", ASKED)
def test_good_repository_loads_and_answers(model: str, loaded: TritonServer) -> None:
    name = "IN" if model == "bls" else "TEXT"
    tensor = {"name": name, "datatype": "BYTES", "shape": [1], "data": ["hello"]}

    status, body = ask(loaded, f"{model}/infer", {"inputs": [tensor]})

    assert status == 200, body
    assert body["outputs"][0]["data"] == ["hello"]  # type: ignore[index]


@pytest.mark.server
def test_corrected_repositories_are_loaded(loaded: TritonServer) -> None:
    states = model_states(loaded)

    assert {states[name.partition("-")[2].replace("-", "_")] for name in FIXABLE} == {"READY"}
