# SPDX-License-Identifier: Apache-2.0
"""What a real Triton says on a machine without a GPU, as the kit tells it."""

import shutil
from pathlib import Path

import pytest

from ensemblekit.errors import ServerExited
from ensemblekit.gpu import visible_gpus
from ensemblekit.repository.config import place_on_gpus, write_config
from ensemblekit.repository.read import read_config
from tests.conftest import DATA, START_TIMEOUT_S, ServerMaker

pytestmark = pytest.mark.server


def test_start_with_an_instance_on_each_of_two_gpus_without_any_says_what_to_do(
    make_server: ServerMaker, tmp_path: Path
) -> None:
    if visible_gpus():
        pytest.skip("needs a machine without a GPU")
    model = tmp_path / "models" / "words"
    shutil.copytree(DATA / "decoupled_repository" / "words", model)
    config = read_config(model)
    place_on_gpus(config, 2)
    write_config(config, model / "config.pbtxt")

    with pytest.raises(ServerExited) as caught:
        make_server(tmp_path / "models").start(START_TIMEOUT_S)

    assert "; the config asks for GPU 0, Triton can use: none; words: Invalid argument" in caught.value.found
    assert caught.value.hint.startswith("use DEVICE 'cpu', or make a GPU visible")
