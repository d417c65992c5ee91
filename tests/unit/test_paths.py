# SPDX-License-Identifier: Apache-2.0
"""Places do not depend on the current folder."""

import os
import pwd
from pathlib import Path

import pytest

from ensemblekit.errors import UnsupportedMachine
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


@pytest.mark.parametrize(
    ("mode", "owner", "group", "text"),
    [
        (0o777, 0, 0, "its mode is 777: every user can write to it"),
        (0o1777, 0, 0, "its mode is 1777: every user can write to it"),
        (0o775, 0, 65533, "its mode is 775: the group 65533 can write to it"),
        (0o755, 65534, 0, "it belongs to user 65534"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_cache_that_others_can_write_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int, owner: int, group: int, text: str
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    os.chown(tmp_path, owner, group)
    tmp_path.chmod(mode)

    with pytest.raises(UnsupportedMachine, match="Hint: `chmod go-w") as caught:
        cache_dir()

    assert caught.value.found.startswith(text)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775])
def test_cache_of_this_user_alone_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    os.chown(tmp_path, -1, pwd.getpwuid(os.geteuid()).pw_gid)
    tmp_path.chmod(mode)

    assert cache_dir() == tmp_path


def test_current_run_dir_of_a_batch_run_is_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, str(tmp_path / "run"))

    assert current_run_dir() == tmp_path / "run"


def test_new_run_id_twice_in_a_second_differs() -> None:
    assert new_run_id("quick") != new_run_id("quick")
