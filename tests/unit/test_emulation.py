# SPDX-License-Identifier: Apache-2.0
"""The emulation changes exactly one constant, in a private copy, of a library it knows."""

from pathlib import Path

import pytest

from ensemblekit.assets.store import sha256_of
from ensemblekit.errors import UnsupportedMachine
from ensemblekit.releases import get_release
from ensemblekit.servers.embedded import server_tree
from ensemblekit.servers.emulation import PLATFORM_CONSTANT, REPLACED_CONSTANT, switch_off_ensembles

LIBRARIES = "nvidia_pytriton.libs"


def _core(tree: Path) -> Path:
    return next((tree / LIBRARIES).glob("libtritonserver-*.so"))


@pytest.mark.server
def test_emulation_of_24_08_changes_two_constants_and_leaves_the_original() -> None:
    original = _core(server_tree(get_release("24.08")))
    before = sha256_of(original)

    changed = _core(server_tree(get_release("24.08"), ensembles=False)).read_bytes()

    assert sha256_of(original) == before
    assert changed == original.read_bytes().replace(PLATFORM_CONSTANT, REPLACED_CONSTANT)
    assert changed.count(REPLACED_CONSTANT) == 2
    assert PLATFORM_CONSTANT not in changed


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree whose library holds the constant twice, as the real ones do."""
    library = tmp_path / LIBRARIES / "libtritonserver-0.so"
    library.parent.mkdir()
    library.write_bytes(b"a" + PLATFORM_CONSTANT + b"ensemble_scheduling" + PLATFORM_CONSTANT + b"b")
    return tmp_path


def test_switch_off_known_library_replaces_both_and_nothing_else(tree: Path) -> None:
    library = switch_off_ensembles(tree)

    assert library.read_bytes() == b"a" + REPLACED_CONSTANT + b"ensemble_scheduling" + REPLACED_CONSTANT + b"b"
    assert list(library.parent.iterdir()) == [library]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_switch_off_unknown_library_is_refused_and_left_alone(tree: Path, count: int) -> None:
    library = _core(tree)
    library.write_bytes(b"x" + PLATFORM_CONSTANT * count)
    before = sha256_of(library)

    with pytest.raises(UnsupportedMachine, match=f"{count} occurrences of the constant, expected 2"):
        switch_off_ensembles(tree)

    assert sha256_of(library) == before


def test_switch_off_tree_without_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedMachine, match="0 libraries called"):
        switch_off_ensembles(tmp_path)
