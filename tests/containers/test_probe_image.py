# SPDX-License-Identifier: Apache-2.0
"""The probe of an image: a container of it is asked, or its core library is read; both leave nothing."""

import pytest

from ensemblekit.diagnose.doctor.report import Plan
from ensemblekit.diagnose.doctor.run import examine
from ensemblekit.diagnose.probe.target import probe_target
from ensemblekit.errors import FetchError
from ensemblekit.matrix.run import run_matrix
from ensemblekit.releases import documented_note, get_release
from ensemblekit.servers.container import image_of
from tests.containers.engine import STAND_INS, Podman

WITHOUT = image_of(get_release("24.08"), "vllm-image").rpartition(":")[2]
IMAGES = {f"{STAND_INS}:{WITHOUT}": False, f"{STAND_INS}:24.08-py3": True}


@pytest.mark.parametrize("static", [False, True], ids=["started", "library-read"])
@pytest.mark.parametrize(("image", "verdict"), IMAGES.items(), ids=["vllm-image", "base"])
def test_probe_stand_in_image(image: str, verdict: bool, static: bool, podman: Podman) -> None:
    answer = probe_target(image, static=static)

    print(f"{image} {answer.method} {answer.elapsed_s:.2f} s")
    assert answer.ensembles is verdict, answer
    assert podman.state()["containers"] == []


def test_probe_image_that_is_not_here_says_so() -> None:
    with pytest.raises(FetchError, match="localhost/none"):
        probe_target("localhost/none:1")
    with pytest.raises(FetchError, match="localhost/none"):
        probe_target("localhost/none:1", static=True)


def test_image_of_a_documented_release_says_what_is_known_and_what_not(podman: Podman) -> None:
    image = f"{STAND_INS}:25.03-vllm-python-py3"  # the tag alone is of 25.03; the server in it is of 24.10
    podman.run("tag", f"{STAND_INS}:24.10-vllm-python-py3", image)
    try:
        note = documented_note("25.03")
        assert probe_target(image).evidence[-1] == note
        assert probe_target(image, static=True).evidence[-1] == note
        found = examine(Plan(server=image, engine="stand-in"))
        checks = {check.name: check for check in found.checks}
        assert checks["probe"].details == (note,)
        assert checks["lint"].facts["release"] == "25.03"
        assert checks["request"].state == "ok", checks
        cells = run_matrix(releases=["25.03"], flavours=["vllm-image"], providers=["container"]).cells
        assert [(cell.release, cell.state, cell.verdict) for cell in cells] == [("25.03", "answered", "as expected")]
    finally:
        podman.untag(image)
    assert podman.state()["containers"] == []
