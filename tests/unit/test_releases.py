# SPDX-License-Identifier: Apache-2.0
"""The release table and what a flavour of a release can do."""

import re

import pytest

from ensemblekit.errors import ParameterError
from ensemblekit.releases import FLAVOURS, default_release, get_release, has_ensembles, list_releases


def test_list_releases_are_the_four_from_24_07_in_order() -> None:
    assert [release.name for release in list_releases()] == ["24.07", "24.08", "24.09", "24.10"]


def test_list_releases_each_names_a_checksum() -> None:
    assert all(re.fullmatch(r"[0-9a-f]{64}", release.sha256) for release in list_releases())


def test_default_release_is_the_one_of_the_report() -> None:
    assert default_release() == "24.08"


def test_has_ensembles_only_the_vllm_images_before_24_10_have_none() -> None:
    without = [(r.name, f) for r in list_releases() for f in FLAVOURS if not has_ensembles(r, f)]

    assert without == [("24.07", "vllm-image"), ("24.08", "vllm-image"), ("24.09", "vllm-image")]


def test_get_release_unknown_lists_the_known_ones() -> None:
    with pytest.raises(ParameterError, match=r"'23.01'[\s\S]*24.07, 24.08, 24.09, 24.10[\s\S]*Hint: "):
        get_release("23.01")
