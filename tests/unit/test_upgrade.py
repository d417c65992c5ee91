# SPDX-License-Identifier: Apache-2.0
"""What an upgrade moves: every pair of releases, drivers, and this machine."""

import itertools
import os
from pathlib import Path

import pytest

from ensemblekit.releases import driver_for, get_release, list_releases
from ensemblekit.workarounds.upgrade import check_upgrade, compare_releases, driver_fits


@pytest.mark.parametrize(
    ("old", "new"), list(itertools.combinations(list_releases(), 2)), ids=lambda release: release.name
)
def test_compare_every_line_that_moves_says_what_it_asks(old, new) -> None:  # type: ignore[no-untyped-def]
    rows = compare_releases(old, new)

    assert all(row.means for row in rows if row.moves)
    assert "Triton" in [row.name for row in rows if row.moves]


def test_compare_with_itself_moves_nothing() -> None:
    release = get_release("24.08")

    assert not [row for row in compare_releases(release, release) if row.moves]


def test_compare_24_08_with_24_10_moves_these() -> None:
    rows = {row.name: row for row in compare_releases(get_release("24.08"), get_release("24.10"))}

    moved = [name for name, row in rows.items() if row.moves]
    assert moved == ["ensembles in the vLLM image", "Triton", "vLLM", "CUDA", "size of the vLLM image"]
    assert (rows["vLLM"].old, rows["vLLM"].new) == ("0.5.3.post1", "0.5.5")
    assert rows["driver, any GPU"].new == "560 or later"


def test_compare_24_07_with_24_10_asks_for_a_newer_driver() -> None:
    rows = {row.name: row for row in compare_releases(get_release("24.07"), get_release("24.10"))}

    assert (rows["driver, any GPU"].old, rows["driver, any GPU"].new) == ("555 or later", "560 or later")
    assert rows["driver, any GPU"].means == "upgrade the driver first"


def test_driver_is_known_for_every_release_and_the_tested_one_fits() -> None:
    for release in list_releases():
        assert driver_fits(release.tested_driver, driver_for(release))


@pytest.mark.parametrize(
    ("version", "fits"),
    [("570.86.10", True), ("559.99", False), ("470.57.02", True), ("470.42", False), ("555.42.06", False)],
)
def test_driver_fits_from_the_minimum_on_or_in_a_named_branch(version: str, fits: bool) -> None:
    assert driver_fits(version, driver_for(get_release("24.10"))) is fits


@pytest.mark.parametrize(
    ("says", "found", "fine"),
    [("560.35.03", "560.35.03", True), ("550.54.15", "550.54.15", False), ("", "none", False)],
    ids=["new", "old", "none"],
)
def test_stand_in_nvidia_smi_names_the_driver_that_is_checked(
    says: str, found: str, fine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = f"0, GPU-1, NVIDIA L4, 23034 MiB, 22000 MiB, {says}, 8.9"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho header\n{f'echo {row}' if says else 'exit 9'}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    driver, numpy, disk = check_upgrade(get_release("24.10"))

    assert (driver.found, driver.fine) == (found, fine)
    assert "560 or later" in driver.without
    assert numpy.fine
    assert disk.found.endswith("GB")
