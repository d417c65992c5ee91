# SPDX-License-Identifier: Apache-2.0
"""Bundles: what is chosen, how parts join, and what a broken one says."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import pytest

from ensemblekit.bundle.contents import LEFT_OUT, Choice, Pin, choose, layers_for, read_have, read_pins
from ensemblekit.bundle.create import KIT, Plan, _kit_files, create_bundle
from ensemblekit.bundle.parts import PartWriter
from ensemblekit.cli.options import PART_SIZE, SIZE
from ensemblekit.errors import ParameterError
from ensemblekit.paths import repo_root

UNPACK = repo_root() / "scripts" / "bundle_unpack.py"
RUN_TIMEOUT_S = 60
OLD_PYTHON = "/usr/bin/python3"


def a_bundle(
    folder: Path,
    python: str | None = None,
    *,
    brings_python: bool = False,
    more: Callable[[tarfile.TarFile], None] | None = None,
) -> Path:
    """A bundle of one file of 50 kB in parts of 20 kB, and what `more` adds, with the real unpack script."""
    content = folder.parent / "content"
    content.mkdir()
    (content / "data").write_bytes(bytes(range(250)) * 200)
    (content / "bundle.json").write_text(json.dumps({"present": ["numpy"], "left_out": []}))
    folder.mkdir()
    with PartWriter(folder, 20_000) as writer, tarfile.open(fileobj=writer, mode="w|") as archive:
        archive.add(content / "data", "data")
        archive.add(content / "bundle.json", "bundle/bundle.json")
        if more:
            more(archive)
    version = python or "%d.%d" % sys.version_info[:2]
    write_manifest(folder, python=version, brings_python=brings_python)
    (folder / "unpack.py").write_text(UNPACK.read_text())
    return folder


def write_manifest(folder: Path, **values: Any) -> None:
    """Write a manifest that is right for the parts as they are, but for these values."""
    sums = [(part.name, part.read_bytes()) for part in sorted(folder.glob("part-*"))]
    parts = [{"name": name, "size": len(text), "sha256": sha256(text).hexdigest()} for name, text in sums]
    manifest = {"format": 1, "python": "%d.%d" % sys.version_info[:2], "device": "quick", "parts": parts}
    (folder / "manifest.json").write_text(json.dumps(manifest | values))


def unpack(bundle: Path, *arguments: str, python: str = sys.executable) -> "subprocess.CompletedProcess[str]":
    """Run the bundle's own script with a bare Python."""
    command = [python, "-I", str(bundle / "unpack.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)


@pytest.fixture(params=[sys.executable, OLD_PYTHON], ids=["this-python", "python-without-the-data-filter"])
def python(request: pytest.FixtureRequest) -> str:
    """A Python of the version that the bundle is for; one has tar's own data filter, the other has not."""
    if request.param == OLD_PYTHON:
        ask = "import sys, tarfile; print('%d.%d' % sys.version_info[:2], hasattr(tarfile, 'data_filter'))"
        asked = subprocess.run([OLD_PYTHON, "-c", ask], capture_output=True, text=True, check=False)
        if asked.stdout.split() != ["%d.%d" % sys.version_info[:2], "False"]:
            pytest.skip(f"{OLD_PYTHON} is of another version, or has tar's data filter")
    return str(request.param)


def member(name: str, **values: Any) -> Callable[[tarfile.TarFile], None]:
    """Return what adds a file with these fields to an archive."""

    def add(archive: tarfile.TarFile) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = 5
        for field, value in values.items():
            setattr(entry, field, value)
        archive.addfile(entry, io.BytesIO(b"hello") if entry.isreg() else None)

    return add


def raw(text: bytes) -> Callable[[tarfile.TarFile], None]:
    """Return what writes bytes into an archive that tarfile would not."""
    return lambda archive: archive.fileobj.write(text)  # type: ignore[union-attr]


def _huge(archive: tarfile.TarFile) -> None:
    entry = tarfile.TarInfo("huge")
    entry.size = 1 << 40
    raw(entry.tobuf())(archive)


LINK, HARD, FIFO, DEVICE = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE
OUTSIDE = {
    "dots": member("../outside"),
    "dots-within": member("sub/../../outside"),
    "absolute": member("/tmp/ensemblekit-outside"),
    "link": member("link", type=LINK, linkname="/etc", size=0),
    "link-that-leaves": member("link", type=LINK, linkname="../../outside", size=0),
    "hard-link": member("link", type=HARD, linkname="../outside", size=0),
    "fifo": member("fifo", type=FIFO, size=0),
    "device": member("zero", type=DEVICE, devmajor=1, devminor=5, size=0),
    "backslash": member("..\\outside"),
    "no-name": member("./"),
    "marker": member(".unpacking/file"),
    "huge": _huge,
    "garbage": raw(b"x" * 20_480),
    "pax-nonsense": raw(tarfile.TarInfo.create_pax_global_header({"size": "1e99"})),
    "pax-negative": member("file", pax_headers={"size": "-5"}),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_archive_that_holds_what_no_bundle_has_writes_nothing(tmp_path: Path, python: str, kind: str) -> None:
    bundle = a_bundle(tmp_path / "bundle", more=OUTSIDE[kind])

    done = unpack(bundle, str(tmp_path / "there" / "kit"), "--no-setup", python=python)

    assert done.returncode == 1, done.stdout
    assert re.match(r"Could not .*\.\nFound: .+\nHint: .+\n$", done.stderr.partition("\n")[2]), done.stderr
    assert not (tmp_path / "there").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "content"}


def _cut(bundle: Path) -> None:
    part = bundle / "part-002"
    part.write_bytes(part.read_bytes()[:700])


def _cut_with_right_sums(bundle: Path) -> None:
    for number in (1, 2):
        (bundle / f"part-{number:03d}").unlink()
    write_manifest(bundle)


def _swapped(bundle: Path) -> None:
    first, second = (bundle / "part-000").read_bytes(), (bundle / "part-001").read_bytes()
    (bundle / "part-000").write_bytes(second)
    (bundle / "part-001").write_bytes(first)
    write_manifest(bundle)


def _in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(bundle: Path) -> None:
        (bundle / name).unlink()
        make(bundle / name)

    return change


def _a_part(**values: Any) -> dict[str, Any]:
    return {"name": "part-000", "size": 1, "sha256": "0" * 64} | values


BROKEN: dict[str, Callable[[Path], object]] = {
    "part-cut": _cut,
    "part-longer": lambda bundle: (bundle / "part-001").open("ab").write(b"more"),
    "part-is-a-folder": _in_place_of("part-001", Path.mkdir),
    "part-is-a-fifo": _in_place_of("part-001", os.mkfifo),
    "archive-ends-early": _cut_with_right_sums,
    "parts-swapped": _swapped,
    "manifest-missing": lambda bundle: (bundle / "manifest.json").unlink(),
    "manifest-empty": lambda bundle: (bundle / "manifest.json").write_text(""),
    "manifest-cut": lambda bundle: (bundle / "manifest.json").write_text('{"format": 1, "pyth'),
    "manifest-a-list": lambda bundle: (bundle / "manifest.json").write_text("[]"),
    "manifest-deep": lambda bundle: (bundle / "manifest.json").write_text("[" * 200_000),
    "manifest-not-text": lambda bundle: (bundle / "manifest.json").write_bytes(b"\xff\xfe\x00"),
    "manifest-a-fifo": _in_place_of("manifest.json", os.mkfifo),
    "manifest-of-another-format": lambda bundle: write_manifest(bundle, format=2),
    "no-python": lambda bundle: write_manifest(bundle, python=None),
    "no-such-device": lambda bundle: write_manifest(bundle, device="--evil"),
    "no-parts": lambda bundle: write_manifest(bundle, parts=[]),
    "parts-a-number": lambda bundle: write_manifest(bundle, parts=7),
    "part-elsewhere": lambda bundle: write_manifest(bundle, parts=[_a_part(name="/etc/passwd")]),
    "part-out-of-order": lambda bundle: write_manifest(bundle, parts=[_a_part(name="part-001")]),
    "sum-of-another-kind": lambda bundle: write_manifest(bundle, parts=[_a_part(sha256=5)]),
    "size-no-number": lambda bundle: write_manifest(bundle, parts=[_a_part(size="1")]),
    "size-wrong": lambda bundle: write_manifest(bundle, parts=[_a_part(size=10**18)]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_bundle_is_one_clear_error_and_writes_nothing(tmp_path: Path, kind: str) -> None:
    bundle = a_bundle(tmp_path / "bundle")
    BROKEN[kind](bundle)

    done = unpack(bundle, str(tmp_path / "there"), "--no-setup")

    assert done.returncode == 1, done.stdout
    last = done.stderr[done.stderr.index("Could not") :]
    assert re.match(r"Could not .*\.\nFound: .+\nHint: .+\n$", last), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "there").exists()


def test_description_that_is_none_leaves_an_unpack_that_can_be_repeated(tmp_path: Path) -> None:
    """As after a full disk: what was begun is known, and the same command goes on."""
    bundle = a_bundle(tmp_path / "bundle", more=member("bundle/bundle.json"))
    there = tmp_path / "there"

    first = unpack(bundle, str(there), "--no-setup")
    shutil.rmtree(bundle)
    shutil.rmtree(tmp_path / "content")
    (there / "data").write_bytes(b"half")
    second = unpack(a_bundle(tmp_path / "bundle"), str(there), "--no-setup")

    assert first.returncode == 1
    assert "run the same command again" in first.stderr
    assert second.returncode == 0, second.stderr
    assert (there / "data").read_bytes() == bytes(range(250)) * 200
    assert sorted(path.name for path in there.iterdir()) == ["bundle", "data"]


def test_unpack_killed_on_the_way_can_be_repeated(tmp_path: Path, python: str) -> None:
    bundle, there = a_bundle(tmp_path / "bundle"), tmp_path / "there"
    script = (bundle / "unpack.py").read_text()
    (bundle / "unpack.py").write_text(
        script.replace("def note_host(target: str) -> dict:", "def note_host(target: str) -> dict:\n    os.abort()")
    )
    killed = unpack(bundle, str(there), "--no-setup", python=python)
    (bundle / "unpack.py").write_text(script)

    again = unpack(bundle, str(there), "--no-setup", python=python)

    assert killed.returncode < 0
    assert again.returncode == 0, again.stderr
    assert not (there / ".unpacking").exists()


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
    names = asked.stdout.splitlines()

    assert {name.split("/")[0] for name in names} - set(KIT) == {".ci", ".pre-commit-config.yaml"}
    assert {name for name in names if name.split("/")[0] in KIT} <= set(_kit_files())
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
    with pytest.raises(click.BadParameter, match="62MB"):
        PART_SIZE.convert(text, None, None)


def test_part_size_is_bytes() -> None:
    assert PART_SIZE.convert("62MB", None, None) == 62_000_000
    assert SIZE.convert("4GiB", None, None) == 4 << 30
