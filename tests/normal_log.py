# SPDX-License-Identifier: Apache-2.0
"""A form in which the logs of two runs can be compared."""

import re

__all__ = ["normalise"]

_NORMAL = (
    (re.compile(r"^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ ", re.MULTILINE), r"\1 "),
    (re.compile(r"\b(127\.0\.0\.1|0\.0\.0\.0|localhost):\d+"), r"\1:PORT"),
    (re.compile(r"(model_repository_path\[\d+\]\s*\| )\S+"), r"\1/models"),
    (re.compile(r"/[^\s\"|]*?/backends(?=[/\"])"), "/opt/tritonserver/backends"),
    (re.compile(r"Timeout \d+: Found (\d+) (live models|model versions)"), r"Timeout N: Found \1 \2"),
    (re.compile(r"[-+]{4,}"), "----"),
    (re.compile(r" {2,}"), " "),
)


def normalise(text: str) -> str:
    """Return a log without what differs from run to run: times, pids, ports, folders, the width of tables."""
    for pattern, replacement in _NORMAL:
        text = pattern.sub(replacement, text)
    return text
