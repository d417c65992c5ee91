# SPDX-License-Identifier: Apache-2.0
"""Print the figures of runs of the faults suite as one table: `python tests/faults/table.py runs/*/faults.json`."""

import json
import sys
from pathlib import Path


def table(files: list[Path]) -> str:
    """Return the rows of all records as Markdown: what was tried and held is added up, of times the longest counts."""
    rows = dict[str, dict[str, float]]()
    for file in files:
        for name, row in json.loads(file.read_text())["faults"].items():
            if "tried" in row:
                sums = rows.setdefault(name, {"tried": 0, "held": 0, "longest": 0.0})
                sums["tried"] += row["tried"]
                sums["held"] += row["held"]
                sums["longest"] = max(sums["longest"], row.get("seconds_max", 0), row.get("told_s_max", 0))
    lines = [
        f"| {name} | {row['tried']} | {row['held']} | {row['longest'] or '-'} |" for name, row in sorted(rows.items())
    ]
    return "\n".join(["| fault | tried | held | longest, s |", "| --- | --- | --- | --- |", *lines])


if __name__ == "__main__":
    print(table([Path(word) for word in sys.argv[1:]]))
