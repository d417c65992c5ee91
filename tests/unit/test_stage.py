# SPDX-License-Identifier: Apache-2.0
"""Staging copies the repository and never edits the original."""

from pathlib import Path

import pytest

from ensemblekit.assets.store import sha256_of
from ensemblekit.errors import RepositoryError
from ensemblekit.repository.stage import stage_repository
from tests.conftest import DATA


def _content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def test_stage_repository_without_llm_is_a_plain_copy(tmp_path: Path) -> None:
    original = DATA / "report_repository"

    staged = stage_repository(tmp_path / "models", source=None, device="cpu", original=original)

    assert staged.models == ("ensemble", "main_app", "pre")
    assert _content(staged.path) == _content(original)


def test_stage_repository_stand_in_replaces_llm_and_leaves_the_original(tmp_path: Path, model_repo: Path) -> None:
    before = _content(model_repo)

    staged = stage_repository(tmp_path / "models", source=None, device="cpu")

    assert 'backend: "python"' in staged.config_text("llm")
    assert staged.environment == {}
    assert _content(model_repo) == before


@pytest.mark.parametrize("bls", [True, False], ids=["asked-for", "left-out"])
def test_stage_repository_holds_the_bls_pipeline_only_when_asked(tmp_path: Path, bls: bool) -> None:
    staged = stage_repository(tmp_path / "models", source=None, device="cpu", bls=bls)

    assert ("bls" in staged.models) is bls
    assert {"ensemble", "llm", "postprocess", "preprocess"} <= set(staged.models)


def test_stage_repository_twice_replaces_the_first(tmp_path: Path) -> None:
    target = tmp_path / "models"
    target.mkdir()
    (target / "old").mkdir()

    staged = stage_repository(target, source=None, device="cpu", original=DATA / "report_repository")

    assert "old" not in staged.models


@pytest.mark.parametrize("name", ["nowhere", ""], ids=["missing", "empty"])
def test_stage_repository_without_models_says_what_belongs_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match=r"stage the model repository[\s\S]*Hint: give the folder"):
        stage_repository(tmp_path / "models", source=None, device="cpu", original=tmp_path / name)


def test_staged_tree_lists_the_files_without_compiled_ones(tmp_path: Path) -> None:
    staged = stage_repository(tmp_path / "models", source=None, device="cpu", original=DATA / "report_repository")

    assert staged.tree().startswith("models/\n    ensemble/\n")
    assert "__pycache__" not in staged.tree()
