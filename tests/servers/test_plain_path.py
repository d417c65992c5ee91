# SPDX-License-Identifier: Apache-2.0
"""A checkout whose path a shell would take apart: Triton quotes no path when it starts a Python model's process."""

import os
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from ensemblekit.clients.grpc import ask
from ensemblekit.errors import UnsupportedMachine
from ensemblekit.paths import cache_dir
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.embedded import BINARY, PLAIN, has_server, install_embedded, plain_path, server_tree
from ensemblekit.servers.process import TritonServer

ODD = ["with blanks", "Übung", "it's $HOME & (more)"]


@pytest.mark.server
@pytest.mark.parametrize("name", ODD)
def test_ensemble_answers_from_a_folder_with_an_odd_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    repository = stage_repository(folder / "models", source=None, device="cpu")
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", folder)
    server = TritonServer(installation, repository.path, folder, environment=repository.environment)
    try:
        server.start(60.0)
        assert ask(server, "Hello?").text == "(stand-in) You asked: Hello?"
    finally:
        server.stop()


@pytest.mark.server
@pytest.mark.parametrize("name", ODD)
def test_python_model_runs_in_an_environment_with_an_odd_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    environment = tmp_path / name / ".venv"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "more.pth").write_text(sysconfig.get_path("purelib"))
    monkeypatch.setattr(sys, "executable", str(environment / "bin" / "python3"))
    repository = stage_repository(tmp_path / "models", source=None, device="cpu")
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path)
    server = TritonServer(installation, repository.path, tmp_path)
    try:
        server.start(60.0)
        assert ask(server, "Hello?").text == "(stand-in) You asked: Hello?"
    finally:
        server.stop()


def test_environment_that_names_a_folder_beyond_ascii_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `pip install -e` in such a folder: Triton's Python could not start, the server would wait for ever."""
    (tmp_path / "__editable__.kit.pth").write_text("/home/jürgen/kit/scripts\n", encoding="utf-8")
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))

    with pytest.raises(UnsupportedMachine, match=r"not ASCII, /home/jürgen/kit/scripts[\s\S]*Hint: move the checkout"):
        install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path)


def test_server_whose_binary_is_gone_is_unpacked_again_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wheels").symlink_to(cache_dir() / "wheels")
    monkeypatch.setenv("ENSEMBLEKIT_CACHE", str(tmp_path))
    release = get_release("24.08")
    (server_tree(release) / BINARY).unlink()
    assert not has_server(release)

    installation = install_embedded(release, "base-plus-vllm", tmp_path)

    assert installation.binary.is_file()
    assert has_server(release)
    assert caplog.messages == [f"{tmp_path / 'servers' / '24.08'} has lost its tritonserver, so it is made again"]


@pytest.mark.parametrize("name", ODD)
def test_plain_path_is_a_link_that_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("ENSEMBLEKIT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / name
    folder.mkdir()
    (folder / "file").write_text("here")

    link = plain_path(folder)

    assert PLAIN.fullmatch(str(link))
    assert (link / "file").read_text() == "here"
    assert plain_path(folder) == link
    assert link.parent == tmp_path / "cache" / "paths"


def test_plain_path_of_a_cache_with_an_odd_name_is_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSEMBLEKIT_CACHE", str(tmp_path / "my cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    link = plain_path(tmp_path / "my cache")

    assert link.parent.parent == tmp_path
    assert link.resolve() == tmp_path / "my cache"


def test_plain_path_leaves_a_plain_one_as_it_is(tmp_path: Path) -> None:
    assert plain_path(tmp_path) == tmp_path


@pytest.fixture
def a_temporary_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder among the temporary files where links go, which is not there yet."""
    monkeypatch.setenv("ENSEMBLEKIT_CACHE", str(tmp_path / "my cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"ensemblekit-{os.getuid()}"


def test_link_that_another_user_laid_is_not_followed(tmp_path: Path, a_temporary_place: Path) -> None:
    (tmp_path / "theirs").mkdir()
    a_temporary_place.symlink_to(tmp_path / "theirs")

    with pytest.raises(PermissionError, match="is a link, or belongs to another user"):
        plain_path(tmp_path / "my cache")

    assert list((tmp_path / "theirs").iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_folder_of_another_user_is_not_used(tmp_path: Path, a_temporary_place: Path) -> None:
    a_temporary_place.mkdir()
    os.chown(a_temporary_place, 65534, 65534)

    with pytest.raises(PermissionError, match="belongs to another user"):
        plain_path(tmp_path / "my cache")


def test_own_folder_that_others_could_write_to_is_closed_to_them(tmp_path: Path, a_temporary_place: Path) -> None:
    a_temporary_place.mkdir(mode=0o777)
    a_temporary_place.chmod(0o777)

    plain_path(tmp_path / "my cache")

    assert a_temporary_place.stat().st_mode & 0o777 == 0o700
