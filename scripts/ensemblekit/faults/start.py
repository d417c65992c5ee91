# SPDX-License-Identifier: Apache-2.0
"""Why an engine did not start on a GPU: `recognise` under the name that servers/process.py still uses."""

from dataclasses import dataclass

from ensemblekit.faults.catalogue import fault, recognise
from ensemblekit.faults.engine import GPU_FAULTS
from ensemblekit.faults.fault import Context

__all__ = ["Reason", "reason_of"]


@dataclass(frozen=True)
class Reason:
    """What was found in a log, and what to do about it."""

    found: str
    hint: str


def reason_of(text: str) -> Reason | None:
    """Return why an engine did not start on a GPU, None if the log does not say that this was it."""
    found = recognise(text, Context(engines=1, here=True), among=(*GPU_FAULTS, fault("T309")))
    return Reason(found.found, found.hint) if found else None
