# SPDX-License-Identifier: Apache-2.0
"""A server that crashes while it unloads the models of a failed start; a stand-in, since the real one seldom does."""

from dataclasses import replace
from pathlib import Path

import pytest

from ensemblekit.releases import get_release
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import TritonServer
from tests.conftest import DATA

STAND_IN = """#!/bin/sh
echo 'I1125 04:11:40.122473 21203 server.cc:336] "{words}"'
if [ -e {folder}/again ]; then exit 1; fi
touch {folder}/again
kill -SEGV $$
"""


@pytest.mark.server
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("All models are stopped, unloading models", 1),
        ("Waiting for in-flight requests to complete.", 1),
        ("loading: pre:0", 139),
    ],
    ids=["while-unloading-once-more", "while-it-begins-to-end-once-more", "elsewhere-as-it-is"],
)
def test_stand_in_that_crashes(tmp_path: Path, words: str, code: int) -> None:
    program = tmp_path / "tritonserver"
    program.write_text(STAND_IN.format(folder=tmp_path, words=words))
    program.chmod(0o755)
    installation = replace(install_embedded(get_release("24.08"), "vllm-image", tmp_path / "real"), binary=program)

    outcome = TritonServer(installation, DATA / "report_repository", tmp_path / "run").attempt_start(20)

    assert (outcome.kind, outcome.exit_code) == ("exited", code)
    assert (tmp_path / "run" / "server.crashed.log").exists() is (code == 1)
