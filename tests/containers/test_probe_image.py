# SPDX-License-Identifier: Apache-2.0
"""The probe of an image: a container of it is asked, or its core library is read; both leave nothing."""

import pytest

from ensemblekit.diagnose.probe.target import probe_target
from ensemblekit.errors import FetchError
from ensemblekit.releases import get_release
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
