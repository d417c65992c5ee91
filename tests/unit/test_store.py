# SPDX-License-Identifier: Apache-2.0
"""The cache heals what is broken, says clearly what cannot be healed, and works once for two runs at once.

pip is real; its index is a folder with a tiny wheel.
"""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from ensemblekit.assets.store import build_once, fetch_wheel, is_whole, sha256_of, unpack_wheel
from ensemblekit.errors import FetchError
from ensemblekit.paths import CACHE_VARIABLE

NAME = "tinykit-1.0-py3-none-any.whl"
WRONG = "0" * 64
MAKER = """
import sys, time
from pathlib import Path
from ensemblekit.assets.store import build_once
from ensemblekit.paths import cache_dir
def make(draft):
    with (cache_dir() / "made").open("a") as log:
        log.write("x")
    (draft / "half").touch()
    time.sleep(float(sys.argv[1]))
    (draft / "whole").touch()
build_once(cache_dir() / "things" / "thing", make)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its index, with one wheel; returns the wheel."""
    wheel = tmp_path / "index" / NAME
    wheel.parent.mkdir()
    info = "tinykit-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinykit/__init__.py", "text = 'x'\n" * 50)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinykit\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel


def test_fetch_wheel_empty_cache_fetches_it(cache: Path, fake_index: Path) -> None:
    wheel = fetch_wheel("tinykit", "1.0", sha256=sha256_of(fake_index))

    assert wheel == cache / "wheels" / NAME
    assert wheel.read_bytes() == fake_index.read_bytes()


def test_fetch_wheel_in_cache_does_not_ask_pip(cache: Path, fake_index: Path) -> None:
    digest = sha256_of(fake_index)
    fetch_wheel("tinykit", "1.0", sha256=digest)
    fake_index.unlink()

    assert sha256_of(fetch_wheel("tinykit", "1.0", sha256=digest)) == digest


def test_fetch_wheel_one_byte_flipped_in_cache_is_fetched_anew(cache: Path, fake_index: Path) -> None:
    digest = sha256_of(fake_index)
    wheel = fetch_wheel("tinykit", "1.0", sha256=digest)
    content = bytearray(wheel.read_bytes())
    content[100] ^= 1
    wheel.write_bytes(content)

    assert sha256_of(fetch_wheel("tinykit", "1.0", sha256=digest)) == digest


def test_fetch_wheel_wrong_expected_sha256_names_both(cache: Path, fake_index: Path) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_wheel("tinykit", "1.0", sha256=WRONG)

    assert str(caught.value).startswith("Could not verify tinykit 1.0.")
    assert f"sha256 {sha256_of(fake_index)}, expected {WRONG}" in caught.value.found
    assert str(caught.value).splitlines()[-1].startswith("Hint: a mirror or proxy may have altered the file")
    assert not list((cache / "wheels").glob("*.whl"))


def test_fetch_wheel_download_cut_in_half_is_one_clear_error(cache: Path, fake_index: Path) -> None:
    digest = sha256_of(fake_index)
    half = fake_index.read_bytes()[: fake_index.stat().st_size // 2]
    fake_index.write_bytes(half)

    with pytest.raises(FetchError) as caught:
        fetch_wheel("tinykit", "1.0", sha256=digest)

    assert "tinykit 1.0" in caught.value.attempted
    assert "Hint: " in str(caught.value).splitlines()[-1]
    assert not list((cache / "wheels").glob("*.whl"))


def test_fetch_wheel_not_in_the_index_shows_what_pip_said(cache: Path, fake_index: Path) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_wheel("tinykit", "2.0", sha256=WRONG)

    assert any("No matching distribution found for tinykit==2.0" in line for line in caught.value.log_tail)
    assert "pip download --no-deps tinykit==2.0" in caught.value.hint


def test_unpack_wheel_that_is_no_zip_says_which_file_to_delete(tmp_path: Path) -> None:
    wheel = tmp_path / NAME
    wheel.write_bytes(b"half a file")

    with pytest.raises(FetchError, match=f"Hint: delete {wheel}"):
        unpack_wheel(wheel, tmp_path / "into")


def test_build_once_two_processes_at_once_make_it_once(cache: Path) -> None:
    makers = [subprocess.Popen([sys.executable, "-c", MAKER, "0.3"]) for _ in range(2)]

    assert [maker.wait(20) for maker in makers] == [0, 0]
    assert (cache / "made").read_text() == "x"
    assert (cache / "things" / "thing" / "whole").is_file()


def test_build_once_without_what_it_was_made_for_makes_it_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = cache / "things" / "thing"

    def make(draft: Path) -> None:
        (draft / "program").write_text("new")

    build_once(target, make, "program")
    (target / "program").unlink()
    assert is_whole(target)
    assert not is_whole(target, "program")

    build_once(target, make, "program")
    build_once(target, make, "program")

    assert (target / "program").read_text() == "new"
    assert caplog.messages == [f"{target} has lost its program, so it is made again"]


def test_build_once_make_raises_leaves_nothing(cache: Path) -> None:
    def make(draft: Path) -> None:
        (draft / "half").touch()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        build_once(cache / "things" / "thing", make)

    assert list((cache / "things").iterdir()) == []


def test_build_once_maker_killed_half_way_next_run_makes_it_whole(cache: Path) -> None:
    maker = subprocess.Popen([sys.executable, "-c", MAKER, "60"])
    deadline = time.monotonic() + 20
    while not list(cache.glob("things/.thing*/half")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(maker.pid, signal.SIGKILL)
    maker.wait()

    subprocess.run([sys.executable, "-c", MAKER, "0"], check=True, timeout=20)

    assert (cache / "made").read_text() == "xx"
    assert [path.name for path in (cache / "things").iterdir()] == ["thing"]
    assert (cache / "things" / "thing" / "whole").is_file()
