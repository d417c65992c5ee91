# SPDX-License-Identifier: Apache-2.0
"""A checkout whose path a shell would take apart: Triton quotes no path when it starts a Python model's process."""

import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from ensemblekit.clients.grpc import ask
from ensemblekit.errors import UnsupportedMachine
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import TritonServer
from ensemblekit.servers.shell_safe_path import PLAIN, plain_path

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
    server = TritonServer(
        install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path), repository.path, tmp_path
    )  # fmt: skip
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
