# SPDX-License-Identifier: Apache-2.0
"""Who is how far: what the gate's two logs say of each seat. No names are asked, and no question is kept."""

import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ensemblekit.errors import ParameterError
from ensemblekit.workshop.gate import KEY_FILE

__all__ = ["SeatRow", "seat_rows"]

REFUSED = "429"


@dataclass
class SeatRow:
    """One seat.

    Attributes:
        name: Its name.
        requests: How many it has sent.
        refused: How many of them were too many at once.
        last_s: Unix time of the last one; None: it was never here.
        done: The tasks it has said it has done, by exercise; only seats that chose to say so.
    """

    name: str
    requests: int = 0
    refused: int = 0
    last_s: float | None = None
    done: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def ago(self, now_s: float | None = None) -> str:
        """Return how long ago the last request was.

        >>> SeatRow("seat-01", last_s=100).ago(now_s=165)
        '1 min ago'
        """
        if self.last_s is None:
            return "not yet"
        seconds = max(0, (time.time() if now_s is None else now_s) - self.last_s)
        return f"{seconds // 60:.0f} min ago" if seconds >= 60 else f"{seconds:.0f} s ago"

    def progress(self) -> str:
        """Return the exercises with how many of their tasks are done.

        >>> SeatRow("seat-01", done={"02": {"a", "b"}}).progress()
        '02: 2'
        """
        return ", ".join(f"{exercise}: {len(tasks)}" for exercise, tasks in sorted(self.done.items()))


def seat_rows(folder: Path) -> list[SeatRow]:
    """Return every seat of a gate, in order, with what its logs say.

    Raises:
        ParameterError: There is no gate in that folder.
    """
    try:
        rows = {name: SeatRow(name) for name in json.loads((folder / KEY_FILE).read_text())}
    except (OSError, ValueError) as error:
        raise ParameterError(
            f"read the seats of {folder}",
            found=str(error),
            hint="give the gate's folder, runs/...-workshop-.../gate, or leave it out for the newest",
        ) from error
    for at, name, status, *_rest in _lines(folder / "requests.log"):
        row = rows.setdefault(name, SeatRow(name))
        row.requests += 1
        row.refused += status == REFUSED
        row.last_s = float(at)
    for _at, name, exercise, task in _lines(folder / "progress.log"):
        rows.setdefault(name, SeatRow(name)).done[exercise].add(task)
    return list(rows.values())


def _lines(path: Path) -> list[list[str]]:
    if not path.is_file():
        return []
    words = (line.split() for line in path.read_text(errors="replace").splitlines())
    return [line for line in words if len(line) >= 4]
