# SPDX-License-Identifier: Apache-2.0
"""What the doctor is asked and what it found, as values and on a terminal."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Check", "DoctorReport", "Name", "Plan", "State", "shortened", "show_check", "show_verdict"]

Name = Literal["preflight", "probe", "lint", "start", "request"]
State = Literal["ok", "warning", "error", "skipped"]
STYLE = {"ok": "green", "warning": "yellow", "error": "bold red", "skipped": "dim"}
SHOWN_VALUES, SHOWN_LETTERS = 8, 200  # of a tensor, of a text
DEEPEST = 6  # of lists in lists


@dataclass(frozen=True)
class Plan:
    """What the doctor shall look at.

    Attributes:
        repository: The model repository; None is the kit's own, or none at all if the server is a URL.
        server: As `ensemblekit probe` takes it.
        release: For lint, where the server does not say it.
        engine: For the kit's own repository: `vllm`, or `stand-in` for a Python-only `llm`.
        python: The interpreter, or the environment, that the Python models shall run in; this one if None.
        model: The model to ask; the ensemble that is found if empty.
        request: Values by input, or None for plain ones.
        force: Whether to go on after an error.
        ready_timeout_s: How long the server may take to load.
        request_timeout_s: How long an answer may take.
    """

    repository: Path | None = None
    server: str = "24.08/base-plus-vllm"
    release: str = ""
    engine: str = "vllm"
    python: Path | None = None
    model: str = ""
    request: Mapping[str, Any] | None = None
    force: bool = False
    ready_timeout_s: float = 600.0
    request_timeout_s: float = 120.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: Name
    state: State
    headline: str  # the result in one sentence
    details: tuple[str, ...] = ()  # more lines, in the order in which they matter
    seconds: float = 0.0  # how long it took
    facts: dict[str, Any] = field(default_factory=dict)  # the numbers and names behind it, for JSON


@dataclass(frozen=True)
class DoctorReport:
    """All checks, and what they come to."""

    repository: Path | None  # the model repository; None if only a server was looked at
    server: str
    model: str  # the model that was asked, empty if it did not come to that
    checks: tuple[Check, ...]  # in the order in which they were done
    start_cost: str  # what a start would have cost, if it was not tried
    seconds: float
    folder: Path  # where the page, the records and the server's log are

    @property
    def failed(self) -> Check | None:
        """The first check that ended in an error, None if all is well."""
        return next((check for check in self.checks if check.state == "error"), None)

    @property
    def exit_code(self) -> int:
        """0 if nothing is wrong, 1 if something is."""
        return 1 if self.failed else 0

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        if failed := self.failed:
            return f"{failed.name}: {failed.headline}"
        asked = next((check for check in self.checks if check.name == "request" and check.state == "ok"), None)
        warned = sum(check.state == "warning" for check in self.checks)
        end = asked.headline if asked else "nothing that was looked at is wrong"
        return f"{end} ({warned} checks with warnings)" if warned else end

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        found = asdict(self) | {"headline": self.headline, "exit_code": self.exit_code}
        return found | {"repository": str(self.repository or ""), "folder": str(self.folder)}

    def __str__(self) -> str:
        rows = list[str]()
        for check in self.checks:
            rows.append(f"{check.state:8} {check.name:10} {check.headline}")
            rows += [f"           {line}" for detail in check.details for line in detail.splitlines()]
        rows += [f"A start would have {self.start_cost}."] if self.start_cost else []
        return "\n".join([*rows, f"Verdict: {self.headline}."])

    __repr__ = __str__


def shortened(value: Any, depth: int = DEEPEST) -> Any:
    """Return values of tensors for a report: of many the first few, whole, and how many more there are.

    >>> shortened({"A": list(range(100)), "B": "no"})
    {'A': [0, 1, 2, 3, 4, 5, 6, 7, '... 92 more'], 'B': 'no'}
    """
    if isinstance(value, str):
        return value if len(value) <= SHOWN_LETTERS else f"{value[:SHOWN_LETTERS]}... {len(value)} characters"
    if not isinstance(value, list | dict) or not depth:
        return value if isinstance(value, int | float | None) else "..."
    more = len(value) - SHOWN_VALUES
    if isinstance(value, dict):
        found = {key: shortened(one, depth - 1) for key, one in list(value.items())[:SHOWN_VALUES]}
        return found | ({"...": f"{more} more"} if more > 0 else {})
    return [shortened(one, depth - 1) for one in value[:SHOWN_VALUES]] + ([f"... {more} more"] if more > 0 else [])


def show_check(check: Check, console: "Console") -> None:
    """Print one check when it is done."""
    from rich.markup import escape

    style = STYLE[check.state]
    head = f"[{style}]{check.state:<8}[/] {check.name:<10} {escape(check.headline)}"
    console.print(f"{head} [dim]{check.seconds:.2f} s[/]", highlight=False, soft_wrap=True)
    for detail in check.details:
        for line in detail.splitlines():
            console.print(f"                    {line}", markup=False, highlight=False, soft_wrap=True)


def show_verdict(found: DoctorReport, page: Path, console: "Console") -> None:
    """Print what the checks come to."""
    lines = [f"Found in {found.seconds:.1f} s." if found.failed else f"{found.seconds:.1f} s in all."]
    if found.start_cost:
        lines.append(f"A start would have {found.start_cost}. (--force tries it all the same)")
    lines.append(f"Report: {page}")
    style = STYLE["error" if found.failed else "ok"]
    console.print(f"\n{found.headline}", markup=False, highlight=False, soft_wrap=True, style=style)
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
