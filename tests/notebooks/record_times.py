# SPDX-License-Identifier: Apache-2.0
"""Take the start page's times over from a recorded run of all pages.

python -m tests.notebooks.record_times runs/RUN [runs/RUN ...]
"""

import json
import os
import sys
from pathlib import Path

from ensemblekit.lesson.lab import TIMES


def record(folders: list[Path]) -> None:
    """Write how long each page that passed took; pages that no run holds keep the time they have."""
    runs = [json.loads((folder / "run.json").read_text()) for folder in folders]
    recorded = json.loads(TIMES.read_text())
    passed = [one for run in runs for one in run["results"] if one["outcome"] == "passed"]
    recorded["seconds"] |= {one["name"]: round(one["seconds"], 1) for one in passed}
    recorded["seconds"] = dict(sorted(recorded["seconds"].items()))
    mode = "with the stand-in" if all(run["quick"] for run in runs) else "with vLLM where it is installed"
    recorded["measured"] = f"{runs[-1]['began'][:10]}, {mode}, on a machine with {os.cpu_count()} cores"
    TIMES.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    record([Path(word) for word in sys.argv[1:]])
