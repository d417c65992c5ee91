# SPDX-License-Identifier: Apache-2.0
"""Bundles: what is chosen, how parts join, and what a broken one says."""

import json
import subprocess
import sys
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest

from ensemblekit.bundle.contents import LEFT_OUT, Choice, Pin, choose, layers_for, read_have, read_pins
from ensemblekit.bundle.create import KIT, Plan, _kit_files, create_bundle
from ensemblekit.bundle.parts import PartWriter, parse_size
from ensemblekit.errors import ParameterError
from ensemblekit.paths import repo_root

UNPACK = repo_root() / "scripts" / "bundle_unpack.py"
RUN_TIMEOUT_S = 60


def a_bundle(folder: Path, python: str | None = None, *, brings_python: bool = False) -> Path:
    """A bundle of one file of 50 kB in parts of 20 kB, with the real unpack script."""
    content = folder.parent / "content"
    content.mkdir()
    (content / "data").write_bytes(bytes(range(250)) * 200)
    (content / "bundle.json").write_text(json.dumps({"present": ["numpy"], "left_out": []}))
    folder.mkdir()
    with PartWriter(folder, 20_000) as writer, tarfile.open(fileobj=writer, mode="w|") as archive:
        archive.add(content / "data", "data")
        archive.add(content / "bundle.json", "bundle/bundle.json")
    version = python or "%d.%d" % sys.version_info[:2]
    manifest = {"format": 1, "python": version, "device": "quick", "parts": [asdict(part) for part in writer.parts]}
    manifest |= {"brings_python": brings_python}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "unpack.py").write_text(UNPACK.read_text())
    return folder


def unpack(bundle: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the bundle's own script with a bare Python."""
    command = [sys.executable, "-I", str(bundle / "unpack.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)


def test_parts_joined_again_equal_the_content(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path / "bundle")

    done = unpack(bundle, str(tmp_path / "there"), "--no-setup")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there" / "data").read_bytes() == bytes(range(250)) * 200
    assert [part.stat().st_size for part in sorted(bundle.glob("part-*"))][:2] == [20_000, 20_000]
    described = json.loads((tmp_path / "there" / "bundle" / "bundle.json").read_text())
    assert any(folder.endswith("site-packages") for folder in described["host_packages"])


def test_flipped_byte_is_caught_and_the_part_named(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path / "bundle")
    content = bytearray((bundle / "part-001").read_bytes())
    content[7] ^= 1
    (bundle / "part-001").write_bytes(content)

    done = unpack(bundle, str(tmp_path / "there"), "--no-setup")

    assert done.returncode == 1
    assert done.stderr == (
        "Could not verify the bundle.\nFound: part-001 is broken\nHint: copy these parts again; the others are whole\n"
    )
    assert not (tmp_path / "there").exists()


def test_missing_part_is_named(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path / "bundle")
    (bundle / "part-000").unlink()

    assert "Found: part-000 is missing" in unpack(bundle, str(tmp_path / "there")).stderr


def test_other_python_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    done = unpack(a_bundle(tmp_path / "bundle", python="3.99"), str(tmp_path / "there"))

    assert done.returncode == 1
    assert "the bundle was made for Python 3.99" in done.stderr
    assert not (tmp_path / "there").exists()


def test_bundle_that_brings_its_python_is_unpacked_by_any(tmp_path: Path) -> None:
    bundle = a_bundle(tmp_path / "bundle", python="3.99", brings_python=True)

    assert unpack(bundle, str(tmp_path / "there"), "--no-setup").returncode == 0
    assert (tmp_path / "there" / "data").is_file()


@pytest.mark.parametrize("what", ["not an archive", "an archive without a Python"])
def test_archive_without_the_python_is_refused_before_anything_is_fetched(tmp_path: Path, what: str) -> None:
    archive = tmp_path / "python.tar.gz"
    if what == "not an archive":
        archive.write_text(what)
    else:
        with tarfile.open(archive, "w:gz") as content:
            content.add(__file__, "python/readme")
    plan = Plan("3.12", "quick", ("base",), Choice((), (), ()), (), weights=False, python_archive=archive)

    with pytest.raises(ParameterError, match=r"(?s)bring Python 3\.12 .*python-build-standalone"):
        create_bundle(plan, tmp_path / "parts", 20_000, lambda *_: None)
    assert not (tmp_path / "parts").exists()


def test_python_of_an_archive_is_in_the_bundle_as_it_will_run(tmp_path: Path) -> None:
    """With its links, and links that only an archive knows, and its modes; nothing there must open the archive."""
    program = tmp_path / "python3.12"
    program.write_text("#!/bin/sh\necho started\n")
    program.chmod(0o755)
    with tarfile.open(tmp_path / "python.tar.gz", "w:gz") as content:
        content.add(program, "python/bin/python3.12")
        for name, kind, target in (("python3", tarfile.SYMTYPE, "python3.12"),
                                   ("python", tarfile.LNKTYPE, "python/bin/python3.12")):  # fmt: skip
            link = tarfile.TarInfo(f"python/bin/{name}")
            link.type, link.linkname, link.mode = kind, target, 0o755
            content.addfile(link)
    plan = Plan("3.12", "quick", (), Choice((), (), ()), (), weights=False, python_archive=tmp_path / "python.tar.gz")
    create_bundle(plan, tmp_path / "parts", 10_000_000, lambda *_: None)

    done = unpack(tmp_path / "parts", str(tmp_path / "there"), "--no-setup")

    assert done.returncode == 0, done.stderr
    for name in ("python3.12", "python3", "python"):
        answer = subprocess.run(
            [tmp_path / "there" / "bundle" / "python" / "bin" / name], capture_output=True, text=True
        )
        assert answer.stdout == "started\n"


def test_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()

    done = unpack(a_bundle(tmp_path / "bundle"), str(tmp_path / "there"))

    assert "the folder is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]


def test_choose_carries_what_is_missing_or_of_another_version() -> None:
    pins = (Pin("a", "1"), Pin("torch", "2.11.0"), Pin("numpy", "1.26.4"), Pin("flashinfer-cubin", "1"))

    choice = choose(pins, {"torch": "2.11.0+cu130", "numpy": "2.5.2"}, LEFT_OUT)

    assert [pin.name for pin in choice.carried] == ["a", "numpy"]
    assert [pin.name for pin in choice.present] == ["torch"]
    assert [pin.name for pin in choice.left_out] == ["flashinfer-cubin"]


def test_everything_that_is_left_out_is_in_the_locks() -> None:
    assert set(LEFT_OUT) <= {pin.name for pin in read_pins(layers_for("cuda"))}


def test_kit_in_a_bundle_is_what_git_tracks_of_its_parts() -> None:
    asked = subprocess.run(["git", "ls-files"], cwd=repo_root(), capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip("this kit is no git checkout")
    tracked = {name for name in asked.stdout.splitlines() if name.split("/")[0] in KIT}

    assert tracked <= set(_kit_files())
    assert not [name for name in _kit_files() if "__pycache__" in name or name.startswith((".venv", "runs"))]


def test_torch_of_the_cpu_environment_is_among_its_pins() -> None:
    assert Pin("torch", "2.13.0") in read_pins(layers_for("cpu"))


def test_pins_of_a_lock_with_hashes_are_its_names_and_versions(tmp_path: Path) -> None:
    lock = "# torch: torch==2.9.0\nnumpy==1.26.4 \\\n    --hash=sha256:aa\n    # via x\nPy_Yaml==6.0\n"
    (tmp_path / "base.txt").write_text(lock)

    pins = read_pins(("base",), tmp_path)

    assert pins == (Pin("torch", "2.9.0"), Pin("numpy", "1.26.4"), Pin("py-yaml", "6.0"))


@pytest.mark.parametrize(
    "text", ['[{"name": "Ruamel_Yaml", "version": "1.0"}]', "ruamel.yaml==1.0\n"], ids=["pip-list", "pip-freeze"]
)
def test_read_have_takes_what_pip_prints(tmp_path: Path, text: str) -> None:
    (tmp_path / "have").write_text(text)

    assert read_have(tmp_path / "have") == {"ruamel-yaml": "1.0"}


@pytest.mark.parametrize("text", [None, "no packages\n"], ids=["no-file", "no-package"])
def test_read_have_of_something_else_says_how_to_make_it(tmp_path: Path, text: str | None) -> None:
    if text:
        (tmp_path / "have").write_text(text)

    with pytest.raises(ParameterError, match="pip list --format=json"):
        read_have(tmp_path / "have")


@pytest.mark.parametrize("text", ["62", "1xB", "big", "9kB"])
def test_part_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="62MB"):
        parse_size(text)
