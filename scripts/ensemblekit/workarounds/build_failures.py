# SPDX-License-Identifier: Apache-2.0
"""A stage that failed: what to say of it, and the one thing to do next."""

import re
from pathlib import Path

from ensemblekit.errors import BuildError
from ensemblekit.faults.log import tail
from ensemblekit.workarounds.build_meter import StageRecord
from ensemblekit.workarounds.build_scripts import STAGES, Stage

__all__ = ["stage_error"]

# what a log's end says, and what to do; the first that fits
HINTS = (
    (r"no space left on device", "free some disk (`docker system prune`), then run the same command again"),
    (
        r"Killed signal terminated|: Killed$|signal 9",
        "the compiler was killed for want of memory: run the same command with fewer --jobs",
    ),
    (r"toomanyrequests|unauthorized|access denied", "log in to the registry first: `docker login nvcr.io`"),
    (
        r"no such host|Could not resolve host|i/o timeout|Connection refused|TLS handshake",
        "a registry or GitHub could not be reached; when it can, run the same command again",
    ),
    (r"Cannot connect to the Docker daemon", "`sudo systemctl start docker`, then run the same command again"),
)
GO_ON: dict[Stage, str] = {
    "clone": "see that the release's branch can be fetched, or give a checkout with --source",
    "cmake_build": "mend what the log's end says and run the same command again: it goes on compiling where it stopped",
}
OTHERWISE = "mend what the log's end says and run the same command again: it goes on with this stage"


def stage_error(stage: Stage, code: int, record: StageRecord, log: Path) -> BuildError:
    """Return the error of a stage whose command ended with a code other than 0."""
    lines = tail(log)
    return BuildError(
        f"finish stage {STAGES.index(stage) + 1} of {len(STAGES)} of the build, {stage}",
        found=f"exit code {code}, attempt {record.attempts}, {record.minutes:.1f} minutes in all",
        hint=_hint(stage, "\n".join(lines)),
        log_path=log,
        log_tail=lines,
    )


def _hint(stage: Stage, text: str) -> str:
    """Return the hint for what the end of the log says."""
    for pattern, hint in HINTS:
        if re.search(pattern, text, re.MULTILINE | re.IGNORECASE):
            return hint
    return GO_ON.get(stage, OTHERWISE)
