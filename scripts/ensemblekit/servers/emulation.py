# SPDX-License-Identifier: Apache-2.0
"""An emulation of the missing build flag: a Triton core that knows no platform called `ensemble`.

Upstream's vLLM images up to 24.09 were compiled without `TRITON_ENABLE_ENSEMBLE`; the PyPI wheels are
compiled with it. What the flag does at poll time is decide whether the platform name of a model's config
equals the constant `ensemble`. This module makes a private copy of `libtritonserver-*.so` in which that
constant is another string, so that the real server takes its own path for a platform it does not know.

Real: the server binary, the code path, the log lines, the exit code, the answers of the load API.
Emulated: why the comparison fails. Compared with a genuine r24.08 core compiled with the option OFF, the log
is the same line by line (tests/data/triton-24.08-ensemble-off.log). Known to differ: a config with both
`ensemble_scheduling` and a non-empty `backend` makes the genuine build say "ensemble scheduling not
supported"; the emulation names its replaced constant in that message.
"""

import shutil
from pathlib import Path

from ensemblekit.errors import UnsupportedMachine

__all__ = ["EMULATION_TEXT", "PLATFORM_CONSTANT", "REPLACED_CONSTANT", "switch_off_ensembles"]

PLATFORM_CONSTANT = b"\0ensemble\0"
REPLACED_CONSTANT = b"\0[no-ens]\0"  # equal length; no platform is ever called so
EXPECTED_COUNT = 2  # occurrences in each of the four wheels 24.07 to 24.10
EMULATION_TEXT = (
    "emulation of the missing build flag: the server, its code path and its messages are real; "
    "only the platform name 'ensemble' was made unknown to a private copy of its library"
)


def switch_off_ensembles(tree: Path) -> Path:
    """Make the server under `tree` one that was built without `--backend=ensemble`, and return its library.

    Args:
        tree: A private copy of an unpacked wheel; its library is replaced, never edited in place.

    Raises:
        UnsupportedMachine: The library is not one of those this was verified on.
    """
    library = _library(tree)
    content = library.read_bytes()
    count = content.count(PLATFORM_CONSTANT)
    if count != EXPECTED_COUNT:
        raise _unexpected(library, f"{count} occurrences of the constant, expected {EXPECTED_COUNT}")
    changed = content.replace(PLATFORM_CONSTANT, REPLACED_CONSTANT)
    if (
        changed.count(REPLACED_CONSTANT) != EXPECTED_COUNT
        or PLATFORM_CONSTANT in changed
        or len(changed) != len(content)
    ):
        raise _unexpected(library, "the replacement did not come out as one constant for one constant")
    draft = library.with_suffix(".draft")
    draft.write_bytes(changed)
    shutil.copymode(library, draft)
    draft.replace(library)
    return library


def _library(tree: Path) -> Path:
    found = sorted((tree / "nvidia_pytriton.libs").glob("libtritonserver-*.so"))
    if len(found) != 1:
        raise _unexpected(tree, f"{len(found)} libraries called libtritonserver-*.so")
    return found[0]


def _unexpected(path: Path, found: str) -> UnsupportedMachine:
    return UnsupportedMachine(
        f"emulate a build without --backend=ensemble in {path}",
        found=found,
        hint="the emulation is verified on the wheels in env/releases.toml only; delete the server "
        "tree to unpack it anew",
    )
