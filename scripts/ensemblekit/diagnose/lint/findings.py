# SPDX-License-Identifier: Apache-2.0
"""What lint found, as values, and how one is made from the catalogue and the names of the case."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ensemblekit.faults.catalogue import fault
from ensemblekit.faults.fault import Fault, Severity
from ensemblekit.releases import Flavour
from ensemblekit.repository.read import ModelFolder
from ensemblekit.repository.textproto import Key

__all__ = ["Finding", "LintReport", "did_you_mean", "make_finding"]

MOST_WORDS = 1000  # that a misspelt one is compared with: a millisecond for a hundred of them
_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One fault in one place. What it means in general stands in the catalogue under its code.

    Attributes:
        code: The fault's code, see `ensemblekit.faults.catalogue`.
        severity: As in the catalogue, or milder where this case is.
        model: The model's name, which is the name of its folder.
        file: The file in which it stands, or the folder that lacks something.
        line: Its line, counted from 1; None if it is no line's fault.
        says: What Triton will say, word for word; empty if it says nothing.
        why: Why, in plain words, with the names of this case.
        fix: What to change, with the names of this case.
        link: Upstream's issue, documentation or source.
        consequence: Whether it only follows from another finding.
        first: Whether it is the one that this model's load would be refused for; the others would come after.
    """

    code: str
    severity: Severity
    model: str
    file: Path
    line: int | None
    says: str
    why: str
    fix: str
    link: str
    consequence: bool = False
    first: bool = True

    @property
    def fault(self) -> Fault:
        """The fault's record in the catalogue."""
        return fault(self.code)

    @property
    def title(self) -> str:
        """The fault in a few words."""
        return self.fault.title

    @property
    def place(self) -> str:
        """File and line as an editor understands them."""
        return f"{self.file}:{self.line}" if self.line else str(self.file)


@dataclass(frozen=True)
class LintReport:
    """The findings of one run.

    Attributes:
        repository: The repository that was read.
        release: The Triton release it was read for.
        flavour: The flavour; None if nobody said one, and a server with ensembles was assumed.
        assumed: What was taken for granted because nobody said it, one sentence each.
        unseen: What was not looked at, a few words each.
        models: The models, by name.
        findings: The faults, the gravest first, then by model.
    """

    repository: Path
    release: str
    flavour: Flavour | None
    assumed: tuple[str, ...]
    unseen: tuple[str, ...]
    models: tuple[str, ...]
    findings: tuple[Finding, ...]

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Return the findings of one severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop the server or break every request."""
        return self.of("error")

    @property
    def causes(self) -> tuple[Finding, ...]:
        """The errors that follow from no other finding."""
        return tuple(finding for finding in self.errors if not finding.consequence)

    @property
    def loads(self) -> bool:
        """Whether a server would load all of the repository."""
        return not any(finding.fault.phase != "serve" for finding in self.errors)

    @property
    def exit_code(self) -> int:
        """0 if there is no error, 1 if there is one."""
        return 1 if self.errors else 0

    @staticmethod
    def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
        """Return findings as a report lists them: the gravest first, causes before consequences, by model."""
        return tuple(sorted(findings, key=lambda f: (_ORDER[f.severity], f.consequence, f.model, f.line or 0)))


def make_finding(
    code: str,
    folder: ModelFolder,
    at: tuple[Key, ...] = (),
    *,
    file: Path | None = None,
    line: int | None = None,
    severity: Severity | None = None,
    detail: str = "",
    fix: str = "",
    consequence: bool = False,
    says: str = "",
    **values: object,
) -> Finding:
    """Return a finding.

    Args:
        code: The fault.
        folder: The model's folder.
        at: The path of the field in its config; the line is looked up there.
        file: The file, if it is not the config.
        line: The line, if it is known otherwise.
        severity: Instead of the catalogue's.
        detail: What is special here; stands before the catalogue's reason.
        fix: Instead of the catalogue's.
        consequence: Whether it follows from another finding.
        says: Instead of the catalogue's words.
        values: For the words that Triton will say.
    """
    entry = fault(code)
    place = file or (folder.config_path if folder.has_config else folder.path)
    return Finding(
        code=code,
        severity=severity or entry.severity,
        model=folder.name,
        file=place,
        line=line if line or file or not at else folder.source.line(*at),
        says=says or entry.says(model=folder.name, **values),
        why=f"{detail} {entry.cause}".strip(),
        fix=fix or entry.fix,
        link=entry.link,
        consequence=consequence or entry.consequence,
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question with the nearest known word, empty if none is near.

    >>> did_you_mean("text_inptu", ["text_input", "stream"])
    'Did you mean "text_input"?'
    """
    words = list(known)
    near = difflib.get_close_matches(word, words if len(words) <= MOST_WORDS else (), n=1)
    return f'Did you mean "{near[0]}"?' if near else ""
