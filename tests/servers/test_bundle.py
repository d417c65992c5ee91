# SPDX-License-Identifier: Apache-2.0
"""A bundle, from end to end: made here, unpacked elsewhere without an index, and its first lesson run there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]
STEP_TIMEOUT_S = 240
NO_INDEX = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}


def run(*command: str, cwd: Path, **environment: str) -> None:
    """Run a command and show what it said if it failed."""
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True,
        timeout=STEP_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.timeout(3 * STEP_TIMEOUT_S)
def test_bundle_unpacked_without_an_index_runs_the_first_lesson(tmp_path: Path) -> None:
    python = "%d.%d" % sys.version_info[:2]
    options = ("--device", "quick", "--no-lab", "--python", python, "--release", "24.08", "--part-size", "40MB")
    kit = str(Path(sys.executable).parent / "ensemblekit")
    run(kit, "bundle", "create", str(tmp_path / "parts"), *options, cwd=tmp_path)
    offline = NO_INDEX | {"ENSEMBLEKIT_CACHE": str(tmp_path / "cache"), "ENSEMBLEKIT_TEST_GPU": "0"}

    run(sys.executable, str(tmp_path / "parts" / "unpack.py"), str(tmp_path / "there"), cwd=tmp_path, **offline)
    run("scripts/run", "--quick", "--only", "01", cwd=tmp_path / "there", **offline)

    (record,) = (tmp_path / "there" / "runs").glob("*-quick-*/run.json")
    assert json.loads(record.read_text())["passed"] is True
