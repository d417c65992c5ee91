# SPDX-License-Identifier: Apache-2.0
"""A planned build with a real engine: real images and containers, a stand-in for upstream's build.py alone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemblekit.clients.grpc import ask
from ensemblekit.releases import get_release
from ensemblekit.servers.container import image_of
from ensemblekit.workarounds.source_build import read_record
from tests.conftest import DATA
from tests.containers.conftest import MakeServer
from tests.containers.engine import STAND_INS, Podman

RUN_TIMEOUT_S = 1200.0
# upstream's scripts say `docker`; what a restricted host's podman needs, and no question to a registry
DOCKER = """#!/usr/bin/env bash
words=() network=--network=host limits=(--ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024)
for word in "$@"; do
  case "$word" in
    --pull|--cache-from=*|--ulimit=memlock=*) ;;
    --network=*) network="$word" ;;
    *) words+=("$word") ;;
  esac
done
if [ "${words[0]}" = run ]; then words=(run "$network" "${limits[@]}" "${words[@]:1}"); fi
exec podman "${words[@]}"
"""


@pytest.fixture
def source(tmp_path: Path, podman: Podman, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout with the stand-in build.py, on a machine whose `docker` is this podman; its images are removed."""
    (tmp_path / "source").mkdir()
    shutil.copy(DATA / "stand_in_build" / "build.py", tmp_path / "source")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "docker").write_text(DOCKER)
    (tmp_path / "bin" / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN_BASE", f"{STAND_INS}:24.08-py3")
    yield tmp_path / "source"
    podman.run("rm", "--force", "tritonserver_builder", check=False)
    names = (
        "tritonserver_buildbase",
        "tritonserver",
        "tritonserver_cibase",
        image_of(get_release("24.08"), "custom-build"),
    )
    podman.run("rmi", "--force", *names, check=False)


def build(source: Path) -> "subprocess.CompletedProcess[str]":
    """Run the build as a reader does."""
    command = [sys.executable, "-m", "ensemblekit.cli.main", "build-plan", "run", "--anyway"]
    command += ["--source", str(source), "--work", str(source.parent / "work")]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)


def test_stand_in_build_goes_on_in_its_container_and_becomes_the_flavour_custom_build(
    source: Path, podman: Podman, make_server: MakeServer
) -> None:
    first = build(source)

    assert first.returncode == 1, first.stdout + first.stderr
    assert "error: not this time" in first.stderr
    (builder,) = podman.lines("ps", "--all", "--filter=name=tritonserver_builder", "--format={{.ID}}")

    second = build(source)

    assert second.returncode == 0, second.stdout + second.stderr
    assert podman.lines("ps", "--all", "--filter=name=tritonserver_builder", "--format={{.ID}}") == [builder]
    assert (source.parent / "work" / "build.log").read_text().count("first_half.cc.o") == 1
    record = read_record(source.parent / "work" / "build.json")
    assert all(line.finished for line in record.lines)
    assert record.lines[1].attempts == 2

    server = make_server("custom-build").start(120)

    assert server.installation.image == image_of(get_release("24.08"), "custom-build")
    assert ask(server, "Is it you?").text == "(stand-in) You asked: Is it you?"
    limits = ("--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
    assert "built" in podman.lines("run", "--rm", *limits, server.installation.image, "ls", "/opt/tritonserver")
