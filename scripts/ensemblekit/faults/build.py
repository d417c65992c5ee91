# SPDX-License-Identifier: Apache-2.0
"""What the end of a source build's log says, and the one thing to do next."""

import re

__all__ = ["build_hint"]

# the first that fits
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
    (r"Remote branch \S+ not found", "see that the release's branch can be fetched, or give a checkout with --source"),
    (r"No such (?:container|image)", "what an earlier line made is gone: begin anew with --fresh"),
)
OTHERWISE = "mend what the log's end says and run the same command again: it goes on with this line"


def build_hint(text: str) -> str:
    """Return what to do about the end of a build's log."""
    for pattern, hint in HINTS:
        if re.search(pattern, text, re.MULTILINE | re.IGNORECASE):
            return hint
    return OTHERWISE
