# SPDX-License-Identifier: Apache-2.0
"""The GPU's row of the preflight; the other rows are read in lesson 00."""

from collections.abc import Callable

import pytest

from ensemblekit.diagnose.preflight import Row, gpu_row
from tests.fake_nvidia_smi import UUIDS

CPU_INSTEAD = "the same cells run on the CPU, with fewer tokens/s"


def test_gpu_row_without_a_gpu_says_what_happens_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert gpu_row() == Row("NVIDIA GPU", "none", fine=False, without=CPU_INSTEAD)


def test_gpu_row_of_a_fake_nvidia_smi_says_what_is_free_and_who_holds_the_rest(
    a_fake_nvidia_smi: Callable[..., None],
) -> None:
    a_fake_nvidia_smi(free_mib=(3000,), processes=(f"{UUIDS[0]}, 4242, python3, 78000 MiB",))

    assert gpu_row() == Row(
        "NVIDIA GPU",
        "NVIDIA H100 80GB HBM3, 3000 of 81559 MiB free (held by pid 4242 (python3): 78000 MiB), driver 580.65.06",
        fine=True,
        without=CPU_INSTEAD,
    )


def test_gpu_row_of_a_fake_nvidia_smi_with_an_old_driver_is_not_fine(a_fake_nvidia_smi: Callable[..., None]) -> None:
    a_fake_nvidia_smi(driver="535.104.05")

    row = gpu_row()

    assert not row.fine
    assert row.without.startswith("driver 535.104.05; the locked torch (CUDA 13) needs 580 or newer")
