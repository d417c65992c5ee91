# SPDX-License-Identifier: Apache-2.0
"""What nvidia-smi prints becomes GPUs, as CUDA would number them; text of real drivers, and a fake program."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from ensemblekit.errors import UnsupportedMachine
from ensemblekit.gpu import (
    Gpu,
    choose_visible,
    parse_gpus,
    parse_processes,
    require_gpus,
    visible_gpu,
    visible_gpus,
    why_unusable,
)
from tests.fake_nvidia_smi import GPU_HEADER, H100, PROCESS_HEADER, UUIDS, FakeNvidiaSmi

TWO = parse_gpus("\n".join([GPU_HEADER, *FakeNvidiaSmi(free_mib=(81008, 3000)).gpu_lines()]))
Maker = Callable[..., None]


def test_parse_gpus_of_two_reads_every_field() -> None:
    assert TWO[0] == Gpu(0, UUIDS[0], H100, 81559, 81008, "580.65.06", (9, 0))
    assert [gpu.free_mib for gpu in TWO] == [81008, 3000]


def test_parse_gpus_of_an_old_driver_has_no_capability() -> None:
    text = "index, uuid, name, memory.total [MiB], memory.free [MiB], driver_version\n"
    text += "0, GPU-1, Tesla V100-SXM2-16GB, 16160 MiB, 16150 MiB, 450.80.02\n"

    (gpu,) = parse_gpus(text)

    assert (gpu.driver, gpu.capability) == ("450.80.02", None)


@pytest.mark.parametrize("untold", ["[N/A]", "[Insufficient Permissions]", "[Not Supported]", "[Unknown Error]"])
def test_parse_gpus_memory_that_the_driver_does_not_tell_is_none(untold: str) -> None:
    (gpu,) = parse_gpus(f"{GPU_HEADER}\n0, GPU-1, NVIDIA A100-SXM4-40GB, {untold}, {untold}, 580.65.06, 8.0\n")

    assert (gpu.total_mib, gpu.free_mib) == (None, None)


@pytest.mark.parametrize(
    "text", ["", "No devices were found\n", "NVIDIA-SMI has failed because it couldn't communicate with the driver\n"]
)
def test_parse_gpus_of_a_refusal_is_empty(text: str) -> None:
    assert parse_gpus(text) == ()


def test_parse_processes_keeps_names_with_commas_and_untold_memory() -> None:
    lines = [PROCESS_HEADER, f"{UUIDS[0]}, 40170, /usr/bin/python3, 185 MiB", f"{UUIDS[0]}, 7, a, b, 1 MiB"]
    lines += [f"{UUIDS[1]}, 18, [Not Found], [N/A]"]

    found = parse_processes("\n".join(lines))

    assert [str(process) for process in found] == [
        "pid 40170 (/usr/bin/python3): 185 MiB",
        "pid 7 (a, b): 1 MiB",
        "pid 18 ([Not Found]): memory",
    ]


@pytest.mark.parametrize(
    ("listed", "chosen"),
    [
        (None, [0, 1]),
        ("1", [1]),
        ("1,0", [1, 0]),
        (" 0 , 1 ", [0, 1]),
        (UUIDS[1], [1]),
        (UUIDS[1][:8], [1]),
        ("0,7,1", [0]),
        ("0,-1,1", [0]),
        ("0,0", [0]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
    ids=str,
)
def test_choose_visible_is_what_cuda_would_see(listed: str | None, chosen: list[int]) -> None:
    assert [gpu.index for gpu in choose_visible(TWO, listed)] == chosen


def test_choose_visible_slice_of_a_gpu_has_unknown_memory() -> None:
    (gpu,) = choose_visible(TWO[:1], "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f")

    assert (gpu.name, gpu.total_mib) == (H100, None)


def test_visible_gpus_of_a_fake_nvidia_smi_know_who_holds_their_memory(a_fake_nvidia_smi: Maker) -> None:
    a_fake_nvidia_smi(free_mib=(81008, 3000), processes=(f"{UUIDS[1]}, 4242, python3, 78000 MiB",))

    first, second = visible_gpus()

    assert first.processes == ()
    assert second.holders == "pid 4242 (python3): 78000 MiB"
    assert visible_gpu() == H100


def test_visible_gpus_of_a_fake_nvidia_smi_with_an_old_driver_are_still_found(a_fake_nvidia_smi: Maker) -> None:
    a_fake_nvidia_smi(driver="470.82.01")

    (gpu,) = visible_gpus()

    assert why_unusable(gpu) == "driver 470.82.01; the locked torch (CUDA 13) needs 580 or newer"


def test_visible_gpus_without_nvidia_smi_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    assert visible_gpus() == ()
    assert visible_gpu() is None


@pytest.mark.parametrize("driver", ["580.65.06", "581.15", "610.1"])
def test_why_unusable_new_driver_is_fine(driver: str) -> None:
    assert why_unusable(replace(TWO[0], driver=driver)) is None


def test_why_unusable_old_gpu_is_named() -> None:
    reason = why_unusable(replace(TWO[0], name="Tesla V100-SXM2-16GB", capability=(7, 0)))

    assert reason == (
        "GPU 0 (Tesla V100-SXM2-16GB) of compute capability 7.0; the locked torch (CUDA 13) needs 7.5 or newer"
    )


def test_require_gpus_more_than_a_fake_nvidia_smi_shows_says_how_many(
    a_fake_nvidia_smi: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_fake_nvidia_smi(free_mib=(81008, 81008))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    with pytest.raises(UnsupportedMachine) as caught:
        require_gpus(99, "stage the model for 99 GPUs")

    assert str(caught.value).splitlines() == [
        "Could not stage the model for 99 GPUs.",
        f"Found: 99 GPUs are asked for; 1 visible: GPU 1 ({H100}); CUDA_VISIBLE_DEVICES is '1'",
        "Hint: ask for at most 1, or make more visible with CUDA_VISIBLE_DEVICES",
    ]
