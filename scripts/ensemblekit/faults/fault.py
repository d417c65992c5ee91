# SPDX-License-Identifier: Apache-2.0
"""One fault as a record: what Triton says of it, why, and what to do. The single source of these texts."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

__all__ = ["Fault", "Phase", "Severity"]

Severity = Literal["error", "warning", "note"]
# poll: refused when its config is read; load: refused when it is loaded; serve: loads, and breaks later
Phase = Literal["poll", "load", "serve"]


@dataclass(frozen=True)
class Fault:
    """A fault that a repository can have. Codes are stable: E1xx at poll, E2xx at load, T3xx when serving.

    Attributes:
        code: For example `E102`.
        title: A few words.
        severity: `error` if it stops the server or breaks every request, else `warning` or `note`.
        phase: When Triton notices, see `Phase`.
        message: What Triton says: in the log, and unless `hidden` in the answer of its load API. A template
            whose fields are the named groups of `pattern`; empty if Triton says nothing.
        pattern: A regular expression for those words, to be searched in a log message or an answer's body.
        status: HTTP status: of the load API for E faults, of the request for T faults; None if there is none.
        hidden: Whether the load API's answer leaves the reason out (it says only "failed to poll").
        cause: Why, in plain words.
        fix: What to change.
        link: Upstream's issue, documentation or source.
        same_words: Codes of faults of which Triton says the same: a log alone cannot tell them apart.
        consequence: Whether this only follows from another model's fault, which is the root cause.
    """

    code: str
    title: str
    severity: Severity
    phase: Phase
    message: str
    pattern: str
    status: int | None
    cause: str
    fix: str
    link: str
    same_words: tuple[str, ...] = ()
    consequence: bool = False

    @property
    def hidden(self) -> bool:
        """Whether the load API's answer leaves the reason out."""
        return self.phase == "poll"

    @cached_property
    def expression(self) -> re.Pattern[str] | None:
        """The compiled pattern, None if Triton says nothing of this fault."""
        return re.compile(self.pattern) if self.pattern else None

    def match(self, text: str) -> re.Match[str] | None:
        """Return where a text says this fault, None if it does not."""
        return self.expression.search(text) if self.expression else None

    def says(self, **values: object) -> str:
        """Return Triton's words with these values; a value that is not given stands as `…`."""
        fields = re.findall(r"{(\w+)}", self.message)
        return self.message.format(**{name: values.get(name, "…") for name in fields})
