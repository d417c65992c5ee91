# SPDX-License-Identifier: Apache-2.0
"""Places do not depend on the current folder."""

from pathlib import Path

import pytest

from ensemblekit.paths import (
    CACHE_VARIABLE,
    RUN_DIR_VARIABLE,
    cache_dir,
    current_run_dir,
    new_run_id,
    repo_root,
)


def test_repo_root_from_another_folder_is_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    assert (repo_root() / "env" / "releases.toml").is_file()


def test_cache_dir_override_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "a" / "b"))

    assert cache_dir() == tmp_path / "a" / "b"
    assert cache_dir().is_dir()


def test_current_run_dir_of_a_batch_run_is_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path / "run"))

    assert current_run_dir() == tmp_path / "run"


def test_new_run_id_twice_in_a_second_differs() -> None:
    assert new_run_id("quick") != new_run_id("quick")
