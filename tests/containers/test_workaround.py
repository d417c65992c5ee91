# SPDX-License-Identifier: Apache-2.0
"""Workaround 1 from its Containerfile, on the stand-in base: built, probed, served, asked, removed without a trace."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from ensemblekit.cli.main import app
from ensemblekit.clients.grpc import ask
from ensemblekit.clients.http import model_states
from ensemblekit.errors import KitError
from ensemblekit.releases import get_release
from ensemblekit.workarounds.base_image import build_image, remove_image
from tests.containers.conftest import MakeServer
from tests.containers.engine import STAND_INS, Podman

START_TIMEOUT_S = 120.0
QUESTION = "What is the capital of France?"


def test_build_with_a_stand_in_llm_loads_the_ensemble_answers_and_is_removed(
    podman: Podman, make_server: MakeServer
) -> None:
    """No vLLM in this image: a Python stand-in is `llm`, so that the build takes seconds."""
    before = podman.state()

    built = build_image(get_release("24.08"), backend="kit", vllm="none")
    server = make_server("base-plus-vllm").start(START_TIMEOUT_S)
    states, answer = model_states(server), ask(server, QUESTION)
    folders = server.installation.backend_folders()
    server.stop()
    removed = remove_image(get_release("24.08"))

    assert built.base == f"{STAND_INS}:24.08-py3"
    assert states["ensemble"] == "READY"
    assert answer.text == f"(stand-in) You asked: {QUESTION}"
    assert {"model.py", "triton_vllm"} <= set(folders["vllm"])
    assert built.image in removed.images
    assert podman.state() == before


def test_command_builds_probes_and_removes(podman: Podman) -> None:
    before, runner = podman.state(), CliRunner()

    built = runner.invoke(app, ["workaround", "build", "--backend", "kit", "--vllm", "none"])
    probed = runner.invoke(app, ["workaround", "probe"])
    removed = runner.invoke(app, ["workaround", "remove", "--container-engine", "podman"])

    assert (built.exit_code, probed.exit_code, removed.exit_code) == (0, 0, 0)
    assert "knows ensembles" in probed.output
    assert podman.state() == before


def test_removal_of_one_release_keeps_the_other(podman: Podman) -> None:
    older, newer = get_release("24.08"), get_release("24.10")
    base = f"{STAND_INS}:24.08-py3"
    kept = build_image(newer, base=base, backend="kit", vllm="none")
    gone = build_image(older, base=base, backend="kit", vllm="none")

    removed = remove_image(older)

    assert podman.run("image", "exists", kept.image, check=False).returncode == 0
    assert podman.run("image", "exists", gone.image, check=False).returncode == 1
    assert gone.image in removed.images
    remove_image(newer)


def test_base_that_the_build_pulled_is_removed_with_it(insecure: str, podman: Podman, tmp_path: Path) -> None:
    """The image in the registry is an empty one: the build fails on it, and leaves nothing all the same."""
    before, base = podman.state(), f"{insecure}/tritonserver:24.08-py3"
    (tmp_path / "empty").mkdir()
    podman.run("import", shutil.make_archive(str(tmp_path / "empty"), "tar", tmp_path / "empty"), base)
    podman.run("push", base)
    podman.run("rmi", base)

    with pytest.raises(KitError, match=r"Could not build"):
        build_image(get_release("24.08"), backend="kit", vllm="none")
    removed = remove_image(get_release("24.08"))

    assert base in removed.images
    assert podman.state() == before


def test_base_that_could_not_be_had_is_not_removed_later(podman: Podman) -> None:
    base = "registry.invalid/tritonserver:24.08-py3"
    with pytest.raises(KitError, match=r"Could not pull"):
        build_image(get_release("24.08"), base=base, backend="kit", vllm="none")
    podman.run("tag", f"{STAND_INS}:24.08-py3", base)  # the user brings it in another way

    remove_image(get_release("24.08"))

    podman.untag(base)
    assert podman.run("image", "exists", f"{STAND_INS}:24.08-py3", check=False).returncode == 0


def test_base_without_ensembles_is_found_by_the_probe(podman: Podman) -> None:
    runner, base = CliRunner(), f"{STAND_INS}:24.08-vllm-python-py3"

    assert (
        runner.invoke(app, ["workaround", "build", "--backend", "kit", "--vllm", "none", "--base", base]).exit_code == 0
    )
    probed = runner.invoke(app, ["workaround", "probe"])
    runner.invoke(app, ["workaround", "remove"])

    assert probed.exit_code == 1
    assert "does not know ensembles" in probed.output


def test_build_that_fails_shows_the_end_of_its_log(podman: Podman) -> None:
    with pytest.raises(KitError) as caught:
        build_image(get_release("24.08"), backend="kit", vllm="ensemblekit-has-no-such-package==1")
    remove_image(get_release("24.08"))

    text = str(caught.value)
    assert text.startswith("Could not build localhost/ensemblekit/tritonserver:24.08-base-plus-vllm.")
    assert caught.value.log_path is not None
    assert "No module named pip" in text


def test_upstream_backend_of_main_is_refused(podman: Podman) -> None:
    file = Path(__file__).parents[2] / "env" / "containers" / "base-plus-vllm.Containerfile"
    arguments = {"BASE": f"{STAND_INS}:24.08-py3", "VLLM": "none", "BACKEND_REF": "main"}
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]

    done = podman.run("build", f"--file={file}", *options, str(file.parents[1]), check=False)
    remove_image(get_release("24.08"))

    assert done.returncode != 0
    assert "its backend needs a far newer vLLM" in done.stdout + done.stderr
