# SPDX-License-Identifier: Apache-2.0
"""The command line of a container, read without an engine; tests/containers runs it for real."""

from pathlib import Path

import pytest

from ensemblekit.faults.catalogue import container_refusal
from ensemblekit.releases import get_release
from ensemblekit.servers.container import ContainerInstallation
from ensemblekit.servers.container_engine import ContainerEngine
from ensemblekit.workarounds import base_image

PORTS = (21000, 21001, 21002)


def command(repository: Path, engine: str = "docker", *, gpu: bool = False) -> list[str]:
    """The command line of a container of the 24.08 vLLM image."""
    installation = ContainerInstallation(
        get_release("24.08"), "vllm-image", ContainerEngine(engine), "an-image", "a-digest",
        emulated=False, run_id="a-run", gpu=gpu, name="a-name",
    )  # fmt: skip
    return installation.command(repository, PORTS, ["--last"], environment={"A": "b"})


@pytest.mark.parametrize(
    ("engine", "words"), [("docker", "--gpus=all"), ("podman", "--device=nvidia.com/gpu=all")], ids=["docker", "podman"]
)
def test_gpus_are_given_only_when_asked_for(tmp_path: Path, engine: str, words: str) -> None:
    assert words in command(tmp_path, engine, gpu=True)
    assert not [word for word in command(Path("/models"), engine) if "gpu" in word]


def test_repository_and_local_weights_are_mounted_read_only(tmp_path: Path) -> None:
    weights, version = tmp_path / "weights", tmp_path / "models" / "llm" / "1"
    weights.mkdir()
    version.mkdir(parents=True)
    (version / "model.json").write_text(f'{{"model": "{weights}", "tokenizer": "{weights}", "dtype": "bfloat16"}}')

    volumes = [word for word in command(tmp_path / "models") if word.startswith("--volume=")]

    assert volumes == [f"--volume={tmp_path}/models:/models:ro", f"--volume={weights}:{weights}:ro"]


def test_ports_are_published_on_loopback_unless_the_network_is_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENSEMBLEKIT_CONTAINER_NETWORK", raising=False)
    published = command(tmp_path)
    monkeypatch.setenv("ENSEMBLEKIT_CONTAINER_NETWORK", "host")
    of_the_host = command(tmp_path)

    assert [f"--publish=127.0.0.1:{port}:{port}" in published for port in PORTS] == [True] * 3
    assert "--network=host" in of_the_host
    assert "--http-address=127.0.0.1" in of_the_host


@pytest.mark.parametrize(
    ("code", "last_line", "word"),
    [
        (137, "", "killed from outside"),
        (126, "Error: runc: error setting rlimit type 7: operation not permitted", "--ulimit=nofile=1024"),
        (125, 'Error: could not find "netavark" in one of [/usr/lib/podman]', "ENSEMBLEKIT_CONTAINER_NETWORK=host"),
        (126, "Error: systemd cgroup flag passed, but systemd support for managing cgroups", "without systemd"),
        (126, "Error: stat /dev/nvidiactl: no such device", "container toolkit"),
        (125, "Error: something else", "the engine itself refused"),
    ],
    ids=["killed", "limits", "network", "cgroups", "gpu", "other"],
)
def test_hint_fits_what_the_engine_said(code: int, last_line: str, word: str) -> None:
    refused = container_refusal(code, f"earlier\n{last_line}\n")

    assert refused
    assert word in refused.hint


def test_server_that_ended_by_itself_gets_no_hint_about_the_engine() -> None:
    assert container_refusal(1, "error: creating server: Internal - failed to load all models") is None


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"base": "b"}', "\x00", "[" * 100_000])
def test_broken_note_of_a_base_image_is_one_line_and_the_image_stays(
    note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ENSEMBLEKIT_CACHE", str(tmp_path))
    file = tmp_path / "workaround" / "24.08.json"
    file.parent.mkdir()
    file.write_text(note)

    assert base_image._forget(get_release("24.08")) == ("", "")

    assert caplog.messages == [f"{file} is broken, so the base image stays: remove it by hand if nothing else needs it"]
    assert not file.exists()
