# SPDX-License-Identifier: Apache-2.0
"""The release table and what a flavour of a release can do."""

import re
from dataclasses import asdict

import pytest
from pydantic import TypeAdapter

from ensemblekit.errors import ParameterError
from ensemblekit.faults.catalogue import release_of
from ensemblekit.releases import (
    FLAVOURS,
    backends_of,
    default_release,
    driver_for,
    every_release,
    get_release,
    has_ensembles,
    list_releases,
)


def test_list_releases_are_the_four_from_24_07_in_order() -> None:
    assert [release.name for release in list_releases()] == ["24.07", "24.08", "24.09", "24.10"]


def test_list_releases_each_names_a_checksum() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{64}", release.sha256) for release in list_releases())


def test_table_has_the_types_that_the_classes_say() -> None:
    """Nothing checks them at run time: pydantic takes longer to import than a probe."""
    for row in (*every_release(), *map(driver_for, list_releases())):
        assert TypeAdapter(type(row)).validate_python(asdict(row)) == row


def test_default_release_is_the_one_of_the_report() -> None:
    assert default_release() == "24.08"


def test_has_ensembles_only_the_vllm_images_before_24_10_have_none() -> None:
    without = [(r.name, f) for r in list_releases() for f in FLAVOURS if not has_ensembles(r, f)]

    assert without == [("24.07", "vllm-image"), ("24.08", "vllm-image"), ("24.09", "vllm-image")]


def test_get_release_unknown_lists_the_known_ones() -> None:
    with pytest.raises(ParameterError, match=r"'23.01'[\s\S]*24.07, 24.08, 24.09, 24.10[\s\S]*Hint: "):
        get_release("23.01")


def test_documented_releases_follow_those_that_are_run_without_a_gap() -> None:
    names = [release.name for release in every_release()]
    months = [(year, month) for year in range(24, 27) for month in range(1, 13)]

    assert names == [f"{year}.{month:02}" for year, month in months if (24, 7) <= (year, month) <= (26, 7)]
    assert all(has_ensembles(release, "vllm-image") for release in every_release()[4:])


@pytest.mark.parametrize(
    ("triton", "release"), [("2.49.0", "24.08"), ("2.59.0", "25.06"), ("2.59.1", "25.07"), ("2.60.0", "25.08")]
)
def test_release_of_a_server_is_that_of_the_table(triton: str, release: str) -> None:
    assert release_of(triton) == release


def test_backends_of_an_image_are_those_of_its_release() -> None:
    releases = {release.name: release for release in every_release()}

    assert "tensorflow" in (backends_of(releases["25.02"], "base-plus-vllm") or ())
    assert "tensorflow" not in (backends_of(releases["25.03"], "base-plus-vllm") or ())
    assert backends_of(releases["26.07"], "vllm-image") == {"python", "vllm"}
    assert backends_of(releases["26.07"], "custom-build") is None
