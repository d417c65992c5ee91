# SPDX-License-Identifier: Apache-2.0
"""A bundle, from end to end: made here, and unpacked elsewhere without an index."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]
STEP_TIMEOUT_S = 1200  # a minute alone
NO_INDEX = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}


def run(*command: str, cwd: Path, **environment: str) -> None:
    """Run a command and show what it said if it failed."""
    whole = os.environ | environment
    done = subprocess.run(
        command, cwd=cwd, env=whole, capture_output=True, text=True, timeout=STEP_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.timeout(3 * STEP_TIMEOUT_S)
def test_bundle_unpacked_without_an_index_is_a_seat(tmp_path: Path) -> None:
    """`prepare` opens Lab and runs an exercise on a real server, with the network off; nothing is left to fetch."""
    python = "%d.%d" % sys.version_info[:2]
    kit = str(Path(sys.executable).parent / "ensemblekit")
    options = ("--device", "quick", "--python", python, "--part-size", "40MB")
    run(kit, "bundle", "create", str(tmp_path / "parts"), *options, cwd=tmp_path)
    offline = NO_INDEX | {"ENSEMBLEKIT_CACHE": str(tmp_path / "cache"), "ENSEMBLEKIT_TEST_GPU": "0"}

    there = tmp_path / "there"
    run(sys.executable, str(tmp_path / "parts" / "unpack.py"), str(there), cwd=tmp_path, **offline)
    seat = str(there / ".venv" / "bin" / "ensemblekit")
    run(seat, "workshop", "prepare", "--quick", cwd=there, **offline)
    run(seat, "workshop", "check", "--quick", cwd=there, **offline)
