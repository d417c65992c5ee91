# SPDX-License-Identifier: Apache-2.0
"""What the lesson about OpenAI's API needs besides its cells: the client, and what the gateway costs."""

import importlib
import os
import subprocess
import sys
from importlib.util import find_spec

from IPython.display import Markdown

from ensemblekit.bench.plan import BenchPlan
from ensemblekit.bench.results import BenchResult
from ensemblekit.bench.run import STAND_IN, STAND_IN_WORDS
from ensemblekit.lesson.lesson import Lesson
from ensemblekit.lesson.measure import measure_plan
from ensemblekit.lesson.show import table
from ensemblekit.paths import repo_root

__all__ = ["fetch_openai_client", "gateway_table", "measure_gateway"]

WAYS = {"ensemble": "Triton itself", "openai": "through the gateway"}
WHOLE, STREAMED = "http whole greedy", "http streamed greedy"
REQUESTS_PER_CLIENT = 12  # fewer are over before their rate says anything


def fetch_openai_client() -> bool:
    """Return whether the `openai` package is here, once the set-up has tried to fetch it (env/locks/openai.txt).

    An engine's environment has it. Where it is fetched, the set-up's lines say what; where it cannot be, one line does.
    """
    if find_spec("openai") is None:
        command = [sys.executable, str(repo_root() / "scripts" / "bootstrap.py"), "--quick", "--here", "--openai"]
        environment = os.environ | {"PIP_RETRIES": "1"}
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, check=False)
        if done.returncode:
            found = [line for line in done.stderr.splitlines() if line.startswith("Found: ")]
            print(f"Skipped: the openai package is not here and cannot be fetched. {' '.join(found)}")
            return False
        print(done.stderr, end="")
        importlib.invalidate_caches()
    return True


def measure_gateway(lesson: Lesson, *, clients: int, rounds: int) -> BenchResult:
    """Measure the ensemble of the stand-in over HTTP, and the same through the gateway for OpenAI's API.

    Args:
        lesson: Says the release.
        clients: Most clients at once.
        rounds: How often each is measured, after the warm-up.

    Raises:
        ParameterError: PROVIDER is not `embedded`.
        KitError: A server did not start, or the load generator failed.
    """
    loads = (WHOLE, STREAMED)
    plan = BenchPlan(("ensemble", "openai"), (1, clients), rounds, STAND_IN_WORDS, loads, REQUESTS_PER_CLIENT)
    return measure_plan(lesson, plan, STAND_IN)


def gateway_table(result: BenchResult) -> Markdown:
    """Return requests/s of whole answers and ms to the first word of streams, for both ways, by clients at once."""
    rows = [
        (
            count,
            said,
            f"{result.median(way, count, workload=WHOLE) / result.plan['max_tokens']:.0f}",
            f"{result.median(way, count, 'ttft_ms', STREAMED):.1f}",
        )
        for count in result.plan["concurrencies"]
        for way, said in WAYS.items()
    ]
    return table(rows, ("clients", "way", "requests/s, whole", "first word of a stream, ms"))
