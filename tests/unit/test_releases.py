# SPDX-License-Identifier: Apache-2.0
"""The release table and what a flavour of a release can do."""

import json
import re
from dataclasses import asdict

import pytest
from pydantic import TypeAdapter

from ensemblekit.cli.machine import releases as command
from ensemblekit.errors import ParameterError
from ensemblekit.faults.catalogue import release_of
from ensemblekit.paths import repo_root
from ensemblekit.releases import (
    FLAVOURS,
    DocumentedRelease,
    backends_of,
    default_release,
    documented_note,
    documented_releases,
    driver_for,
    every_release,
    get_release,
    has_ensembles,
    known_release,
    list_releases,
    minimum_driver,
    release_of_image,
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

    assert names == [f"{year}.{month:02}" for year, month in months if (24, 7) <= (year, month) <= (26, 10)]
    assert all(has_ensembles(release, "vllm-image") for release in every_release()[4:])


@pytest.mark.parametrize(
    ("triton", "release"),
    [("2.49.0", "24.08"), ("2.59.0", "25.06"), ("2.59.1", "25.07"), ("2.60.0", "25.08"), ("2.73.0", "26.09")],
)
def test_release_of_a_server_is_that_of_the_table(triton: str, release: str) -> None:
    assert release_of(triton) == release


def test_triton_of_every_release_is_the_one_that_its_log_is_recognised_by() -> None:
    assert [release_of(row.triton) for row in every_release() if row.triton] == [
        row.name for row in every_release() if row.triton
    ]


@pytest.mark.parametrize("release", every_release(), ids=lambda release: release.name)
def test_every_row_has_a_source_and_no_cell_without_one(release: DocumentedRelease) -> None:
    assert all(re.fullmatch(r"https://(github\.com/triton-inference-server|docs\.nvidia\.com)/[^{}]+", link)
               for link in release.links)  # fmt: skip
    facts = (release.python, release.vllm, release.tested_driver, release.vllm_image_gb)
    assert any(facts) == ("matrix" in release.source)
    if release.cuda and "matrix" not in release.source:
        assert "notes" in release.source


def test_links_are_those_of_the_release() -> None:
    assert get_release("24.08").links[1:] == (
        "https://github.com/triton-inference-server/server/blob/r24.08/build.py",
        "https://docs.nvidia.com/deeplearning/triton-inference-server/release-notes/rel-24-08.html",
    )


def test_every_driver_is_of_the_notes_of_a_release_with_that_cuda() -> None:
    names = {row.name for row in every_release()}
    with_driver = [row for row in every_release() if minimum_driver(row)]

    assert [row.name for row in with_driver] == [row.name for row in every_release() if row.name < "26.06"]
    for row in with_driver:
        assert set(driver_for(row).source) <= names
        assert {
            known_release(name).cuda.split(".")[:2] == row.cuda.split(".")[:2] for name in driver_for(row).source
        } == {True}


def test_note_says_what_is_known_and_what_is_not() -> None:
    assert documented_note("25.03") == (
        "release 25.03 was not run here; documented: Triton 2.56.0, vLLM 0.7.3, Python 3.12.3, CUDA 12.8.1.012, "
        "driver 570.124.06, ensembles since 24.10; not known: whether Python models may use numpy 2, how it runs"
    )
    assert (
        "documented: CUDA 13.4.3.001, ensembles since 24.10; not known: Triton, vLLM, Python, driver"
        in documented_note("26.10")
    )
    assert [documented_note(name) for name in ("24.08", "23.01", "")] == ["", "", ""]
    assert all("\n" not in documented_note(row.name) for row in documented_releases())


def test_get_release_of_a_documented_one_says_what_can_be_done_with_it() -> None:
    with pytest.raises(
        ParameterError, match=r"'25.03'[\s\S]*only documented[\s\S]*no wheel[\s\S]*Hint: PROVIDER 'container'"
    ):
        get_release("25.03")


@pytest.mark.parametrize(
    ("image", "release"),
    [
        ("nvcr.io/nvidia/tritonserver:25.03-vllm-python-py3", "25.03"),
        ("localhost/mirror/tritonserver:26.10-py3", "26.10"),
        ("nvcr.io/nvidia/tritonserver:19.01-py3", ""),
        ("localhost/other:25.03-py3", ""),
        ("https://25.03-py3", ""),
    ],
)
def test_release_of_an_image_is_in_its_tag(image: str, release: str) -> None:
    assert release_of_image(image) == release


def test_command_shows_run_and_documented_in_one_table_and_each_source(capsys: pytest.CaptureFixture[str]) -> None:
    command.main([], standalone_mode=False)
    rows = {
        line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if re.match(r"2\d\.\d\d ", line)
    }
    command.main(["--json"], standalone_mode=False)
    as_json = json.loads(capsys.readouterr().out)

    assert [name for name, row in rows.items() if row[1] == "here"] == ["24.07", "24.08", "24.09", "24.10"]
    assert rows["25.03"] == [
        "25.03",
        "no",
        "2.56.0",
        "0.7.3",
        "3.12.3",
        "12.8.1.012",
        "560",
        "570.124.06",
        "22",
        "yes",
        "-",
    ]
    assert [row["name"] for row in as_json] == list(rows)
    assert all(row["links"] for row in as_json)


def test_backends_of_an_image_are_those_of_its_release() -> None:
    releases = {release.name: release for release in every_release()}

    assert "tensorflow" in (backends_of(releases["25.02"], "base-plus-vllm") or ())
    assert "tensorflow" not in (backends_of(releases["25.03"], "base-plus-vllm") or ())
    assert backends_of(releases["26.07"], "vllm-image") == {"python", "vllm"}
    assert backends_of(releases["26.07"], "custom-build") is None


def test_upgrading_page_names_no_release_that_the_table_lacks_and_a_source_for_each_change() -> None:
    page = (repo_root() / "notebooks" / "upgrading.md").read_text()
    known = {row.name for row in every_release()}
    changes = re.findall(r"^\| (2\d\.\d\d[^|]*) \|.* \| ([^|]+) \|$", page, re.MULTILINE)

    assert set(re.findall(r"(?<![\d.])2\d\.(?:0[1-9]|1[0-2])(?!\d|\.\d)", page)) <= known
    assert len(changes) == len(re.findall(r"^\| 2\d", page, re.MULTILINE)) > 15
    assert all("](https://" in source for _, source in changes)
    subjects = ("V1 engine", "KIND", "numpy 2", "Python 3.12", "best_of", "ENABLE_VLLM_HEALTH_CHECK", "OpenAI frontend")
    assert all(subject in page for subject in (*subjects, "--backend=ensemble", "return_finish_reason"))
