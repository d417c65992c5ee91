# SPDX-License-Identifier: Apache-2.0
"""Checks: one plain sentence that must hold. Their cells are what nbval compares and what fails a run."""

from ensemblekit.errors import CheckFailed

__all__ = ["check"]


def check(sentence: str, holds: bool, *, found: object = None) -> None:
    """Print `ok: <sentence>` if it holds.

    Args:
        sentence: What must hold, in plain words, without numbers that vary.
        holds: Whether it does.
        found: What was there instead, for the error.

    Raises:
        CheckFailed: It does not hold.
        TypeError: `holds` is no bool, so that the check would check nothing.

    >>> check("two and two make four", 2 + 2 == 4)
    ok: two and two make four
    """
    if not isinstance(holds, bool):
        raise TypeError(f"check() needs a bool, got {type(holds).__name__}: compare the value with what it should be")
    if not holds:
        raise CheckFailed(
            f"confirm that {sentence}",
            found="the opposite" if found is None else str(found),
            hint="read the cells above from the last one that looks right; the server's log is in this run's folder",
        )
    print(f"ok: {sentence}")
