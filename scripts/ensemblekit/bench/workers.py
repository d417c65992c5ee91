# SPDX-License-Identifier: Apache-2.0
"""The load generator: worker processes that send a round's requests together and report each answer's times."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from ensemblekit.bench import _worker
from ensemblekit.errors import KitError

__all__ = ["LoadGenerator", "usual_workers"]

CORES_PER_WORKER = 4  # of a machine's cores; one worker handles 64 clients before it becomes what is measured
MOST_WORKERS = 8
LEAD_S = 0.3  # all workers have read their job by then
STOP_TIMEOUT_S = 5.0


def usual_workers() -> int:
    """Return how many worker processes this machine gets: a quarter of its cores, one at least, eight at most."""
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // CORES_PER_WORKER))


class LoadGenerator:
    """Worker processes that live as long as the bench."""

    def __init__(self, workers: int | None = None) -> None:
        """Start the workers.

        Args:
            workers: How many; by default `usual_workers`.
        """
        command = [sys.executable, "-P", _worker.__file__]
        self._workers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(workers or usual_workers())
        ]

    def round(
        self,
        url: str,
        bodies: Sequence[dict[str, Any]],
        lengths: Sequence[int],
        concurrency: int,
        *,
        model: str,
        protocol: str,
        stream: bool,
    ) -> list[list[float]]:
        """Send all bodies, `concurrency` at a time, and return each answer's times.

        Args:
            url: Where to.
            bodies: The requests.
            lengths: How many tokens each one's answer has.
            concurrency: Clients at once.
            model: Which model is asked.
            protocol: `http` or `grpc`.
            stream: Whether answers come in pieces.

        Returns:
            One list for each request: begin, first piece and end in seconds of the monotonic clock, pieces, tokens.

        Raises:
            KitError: A worker ended.
        """
        workers = self._workers[:concurrency]
        job = {"url": url, "model": model, "protocol": protocol, "stream": stream}
        job["begin_s"] = time.monotonic() + LEAD_S
        for number, worker in enumerate(workers):
            share = len(range(number, concurrency, len(workers)))
            own = {"concurrency": share, "bodies": list(bodies[number :: len(workers)])}
            own["lengths"] = list(lengths[number :: len(workers)])
            if worker.stdin is not None:
                worker.stdin.write(json.dumps(job | own) + "\n")
                worker.stdin.flush()
        answers = list[list[float]]()
        for worker in workers:
            line = worker.stdout.readline() if worker.stdout else ""
            if not line:
                raise KitError(
                    "generate load", found=f"a worker ended with code {worker.poll()}", hint="its error stands above"
                )
            answers += json.loads(line)
        return answers

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.kill()
            worker.communicate(timeout=STOP_TIMEOUT_S)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()
