# SPDX-License-Identifier: Apache-2.0
"""The answer of a probe, however it was found."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ensemblekit.diagnose.probe.binary import Probe

__all__ = ["EXIT_CODE", "VERDICT", "Method", "ProbeAnswer", "from_probe"]

Method = Literal["started", "library read", "asked"]
VERDICT = {True: "yes, it knows ensembles", False: "no, it does not know ensembles", None: "could not tell"}
EXIT_CODE = {True: 0, False: 1, None: 2}
UPSTREAM = "https://github.com/triton-inference-server/server/issues/7632"
FIX = (
    "its core was built without TRITON_ENABLE_ENSEMBLE: use NVIDIA's base image of the release plus the vLLM backend, "
    "build.py with --backend=ensemble, or a vLLM image from 24.10 on"
)


@dataclass(frozen=True)
class ProbeAnswer:
    """Whether a server knows ensembles, and how that is known.

    Attributes:
        target: What was probed, as it was given.
        ensembles: True or False; None if it could not be told.
        method: `started` (a throw-away ensemble was loaded), `library read`, or `asked` (a running server).
        evidence: One line a fact.
        elapsed_s: Seconds from the start of the server's process, or of the question, to the answer.
        hint: What to do next, empty where nothing is.
    """

    target: str
    ensembles: bool | None
    method: Method
    evidence: tuple[str, ...]
    elapsed_s: float
    hint: str = ""

    @property
    def exit_code(self) -> int:
        """0 for yes, 1 for no, 2 for could not tell."""
        return EXIT_CODE[self.ensembles]

    def as_dict(self) -> dict[str, Any]:
        """Return the answer for JSON."""
        return asdict(self) | {"verdict": VERDICT[self.ensembles], "exit_code": self.exit_code}

    def __str__(self) -> str:
        rows = [f"verdict:  {VERDICT[self.ensembles]}", *(f"evidence: {line}" for line in self.evidence)]
        return "\n".join([*rows, f"fix:      {self.hint}"] if self.hint else rows)

    __repr__ = __str__


def from_probe(target: str, probe: Probe) -> ProbeAnswer:
    """Return the answer of a server that was started for it."""
    evidence = [f"load API on a throw-away ensemble: HTTP {probe.status} {probe.body.strip()}"]
    if probe.reason:
        evidence.append(f"its log, which the API hides: {probe.reason}")
    hint = {True: "", False: f"{FIX} ({UPSTREAM})", None: "an answer that fits neither; read the evidence"}
    return ProbeAnswer(target, probe.ensembles, "started", tuple(evidence), probe.elapsed_s, hint[probe.ensembles])
