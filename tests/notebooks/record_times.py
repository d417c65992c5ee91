# SPDX-License-Identifier: Apache-2.0
"""Take over from recorded runs how long each page takes, and say it wherever a page or a README does.

python -m tests.notebooks.record_times runs/RUN [runs/RUN ...]
"""

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ensemblekit.lesson.lab import TIMES
from ensemblekit.paths import repo_root

NOTEBOOKS = repo_root() / "notebooks"
STEP_S, LAST_IN_SECONDS = 10, 50
UNITS = {"en": (" seconds", " minutes"), "zh": (" 秒", " 分钟"), "table": (" s", " min")}
LENGTH = r"(\d+ (?:seconds|minutes?|秒|分钟|s|min))"


def told(seconds: float, language: str = "en") -> str:
    """Return a time as a page says it: tens of seconds, rounded up, or minutes.

    >>> told(12), told(70), told(130, "table")
    ('20 seconds', '1 minute', '2 min')
    """
    in_seconds, in_minutes = UNITS[language]
    if seconds <= LAST_IN_SECONDS:
        return f"{math.ceil(seconds / STEP_S) * STEP_S}{in_seconds}"
    minutes = max(1, round(seconds / 60))
    return f"{minutes}{in_minutes if minutes > 1 or language != 'en' else ' minute'}"


def places(times: dict[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """Yield each place that says a time: the file, a pattern whose one group is the time, and what it should say."""
    for name, seconds in times["seconds"].items():
        folder, _, stem = name.rpartition("-")
        page = NOTEBOOKS / folder / f"{stem or name}.ipynb"
        if folder:
            yield page, rf"\({LENGTH} to run\)", told(seconds)
            continue
        yield page, rf"\*\*Time\*\* {LENGTH}", told(seconds)
        row = rf"\(notebooks/(?:zh/)?{name}\.ipynb\) \|.*\| {LENGTH} \|\n"
        yield repo_root() / "README.md", row, told(seconds, "table")
        yield repo_root() / "README.zh.md", row, told(seconds, "zh")
        for readme in ("README.md", "README.zh.md"):
            if (sample := f"passed      {name}") in (repo_root() / readme).read_text():
                yield repo_root() / readme, rf"{sample} +(\d+\.\d s)", f"{seconds:.1f} s"
        text = NOTEBOOKS / "zh" / f"{name}.md"
        if text.exists():
            yield text, rf"\*\*时间\*\* {LENGTH}", told(seconds, "zh")
        if "with `--quick`" in page.read_text():
            quick = times["quick"][name]
            yield page, rf"\({LENGTH} with `--quick`\)", told(quick)
            yield text, rf"加 `--quick` 为 {LENGTH}", told(quick, "zh")


def record(folders: list[Path]) -> None:
    """Write how long each page that passed took; pages that no run holds keep the time they have."""
    runs = [json.loads((folder / "run.json").read_text()) for folder in folders]
    times = json.loads(TIMES.read_text())
    for run in runs:
        passed = {one["name"]: round(one["seconds"], 1) for one in run["results"] if one["outcome"] == "passed"}
        passed = {name: seconds for name, seconds in passed.items() if not name.startswith("zh-")}
        key = "quick" if run["quick"] else "seconds"
        times[key] = dict(sorted((times.get(key, {}) | passed).items()))
    if full := [run["began"][:10] for run in runs if not run["quick"]]:
        times["measured"] = f"{full[-1]}, with vLLM where it is installed, on a machine with {os.cpu_count()} cores"
    TIMES.write_text(json.dumps(times, indent=1) + "\n")
    for path, pattern, length in places(times):
        path.write_text(_with(path.read_text(), pattern, length))


def _with(text: str, pattern: str, length: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise LookupError(f"no place for {length!r}: {pattern}")
    return text[: found.start(1)] + length + text[found.end(1) :]


if __name__ == "__main__":
    record([Path(word) for word in sys.argv[1:]])
