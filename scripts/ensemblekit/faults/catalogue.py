# SPDX-License-Identifier: Apache-2.0
"""Every fault the kit knows, by code, and the fault that a text of Triton speaks of."""

import re

from ensemblekit.faults.fault import Fault
from ensemblekit.faults.load import LOAD_FAULTS
from ensemblekit.faults.poll import POLL_FAULTS
from ensemblekit.faults.serve import LATE_TRAPS

__all__ = ["FAULTS", "fault", "fault_in"]

FAULTS: tuple[Fault, ...] = (*POLL_FAULTS, *LOAD_FAULTS, *LATE_TRAPS)
_BY_CODE = {entry.code: entry for entry in FAULTS}
# The narrower expression first. A consequence last: its text quotes its cause.
_GENERAL = ("E116", "E216")
_SEARCH = sorted(FAULTS, key=lambda entry: (entry.consequence, entry.code in _GENERAL))


def fault(code: str) -> Fault:
    """Return the fault with this code.

    Raises:
        KeyError: There is none.

    >>> fault("E101").title
    'this server was built without ensembles'
    """
    return _BY_CODE[code]


def fault_in(text: str) -> tuple[Fault, re.Match[str]] | None:
    """Return the fault that a log message or an answer of the load API speaks of, None if it is unknown.

    A message that quotes another model's failure ("depends on ... loading failed with error: ...") gives the
    quoted failure, which is the cause.

    >>> entry, match = fault_in("unexpected platform type 'ensembel' for chat")
    >>> entry.code, match["platform"], match["model"]
    ('E102', 'ensembel', 'chat')
    """
    for entry in _SEARCH:
        if match := entry.match(text):
            return entry, match
    return None
