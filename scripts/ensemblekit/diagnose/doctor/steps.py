# SPDX-License-Identifier: Apache-2.0
"""What is to be examined and what was found, as values: one check after the other, and the verdict."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["DEFAULT_SERVER", "Examination", "Name", "Plan", "State", "Step"]

Name = Literal["preflight", "probe", "lint", "start", "request"]
State = Literal["ok", "warning", "error", "skipped"]
DEFAULT_SERVER = "24.08/base-plus-vllm"
WORTH = {"ok": 0, "skipped": 0, "warning": 1, "error": 2}


@dataclass(frozen=True)
class Plan:
    """What is to be examined.

    Attributes:
        repository: The model repository; None is the kit's own, or none at all if the server is a URL.
        server: As `ensemblekit probe` takes it.
        release: For lint, where the server does not say it.
        engine: For the kit's own repository: `vllm`, or `stand-in` for a Python-only `llm`.
        python: The interpreter that the Python models shall run in; this one if None.
        model: The model to ask; the ensemble that is found if empty.
        request: Values by input, or None for plain ones.
        force: Whether to go on after an error.
        ready_timeout_s: How long the server may take to load.
        request_timeout_s: How long an answer may take.
    """

    repository: Path | None = None
    server: str = DEFAULT_SERVER
    release: str = ""
    engine: str = "vllm"
    python: Path | None = None
    model: str = ""
    request: Mapping[str, Any] | None = None
    force: bool = False
    ready_timeout_s: float = 600.0
    request_timeout_s: float = 120.0


@dataclass(frozen=True)
class Step:
    """One step of an examination.

    Attributes:
        name: Which.
        state: How it ended.
        headline: The result in one sentence.
        details: More lines, in the order in which they matter.
        seconds: How long it took.
        facts: The numbers and names behind it, for JSON.
    """

    name: Name
    state: State
    headline: str
    details: tuple[str, ...] = ()
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Examination:
    """All steps, and what they come to.

    Attributes:
        repository: The model repository; None if only a server was examined.
        server: The server, as it was given.
        model: The model that was asked, empty if it did not come to that.
        steps: In the order in which they were done.
        wasted: What a start would have cost, if it was not tried.
        seconds: How long all of it took.
        folder: Where the report, the records and the server's log are.
    """

    repository: Path | None
    server: str
    model: str
    steps: tuple[Step, ...]
    wasted: str
    seconds: float
    folder: Path

    @property
    def failed(self) -> Step | None:
        """The first step that ended in an error, None if all is well."""
        return next((step for step in self.steps if step.state == "error"), None)

    @property
    def exit_code(self) -> int:
        """0 if nothing is wrong, 1 if something is."""
        return 1 if self.failed else 0

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        if step := self.failed:
            return f"{step.name}: {step.headline}"
        asked = next((step for step in self.steps if step.name == "request" and step.state == "ok"), None)
        warned = sum(step.state == "warning" for step in self.steps)
        end = asked.headline if asked else "nothing that was looked at is wrong"
        return f"{end}{f' ({warned} steps with warnings)' if warned else ''}"

    def as_dict(self) -> dict[str, Any]:
        """Return the examination for JSON."""
        found = asdict(self) | {"headline": self.headline, "exit_code": self.exit_code}
        return found | {"repository": str(self.repository or ""), "folder": str(self.folder)}

    def __str__(self) -> str:
        rows = list[str]()
        for step in self.steps:
            rows.append(f"{step.state:8} {step.name:10} {step.headline}")
            rows += [f"           {line}" for detail in step.details for line in detail.splitlines()]
        rows += [f"A start would have {self.wasted}."] if self.wasted else []
        return "\n".join([*rows, f"Verdict: {self.headline}."])

    __repr__ = __str__
