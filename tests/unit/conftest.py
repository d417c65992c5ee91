# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the unit tests."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_nvidia_smi import FakeNvidiaSmi


@pytest.fixture
def a_fake_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A maker of a fake `nvidia-smi`, first on the PATH; see `FakeNvidiaSmi` for what it can be told to say."""

    def make(**what: Any) -> None:
        folder = FakeNvidiaSmi(**what).install(tmp_path / "fake-bin")
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return make
