# SPDX-License-Identifier: Apache-2.0
"""The load generators: the bench's own worker processes, and NVIDIA's perf_analyzer, which measures the same again."""

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ensemblekit.assets.store import build_once, fetch_wheel
from ensemblekit.bench import _worker
from ensemblekit.bench.plan import BenchPlan, Workload, prompts, request_body
from ensemblekit.clients.grpc import Served
from ensemblekit.errors import KitError
from ensemblekit.paths import cache_dir
from ensemblekit.releases import get_release
from ensemblekit.servers.embedded import server_tree

__all__ = ["LoadGenerator", "perf_analyzer", "usual_workers"]

CORES_PER_WORKER = 4  # of a machine's cores; one worker handles 64 clients before it becomes what is measured
MOST_WORKERS = 8
LEAD_S = 0.3  # all workers have read their job by then
STOP_TIMEOUT_S = 5.0
# perf_analyzer travels in the wheels of tritonclient up to 2.50; the package perf-analyzer on PyPI holds none
CLIENT, CLIENT_VERSION = "tritonclient", "2.49.0"  # the release of 24.08
CLIENT_SHA256 = "e7b40ba11056c93da434bc8a8b302c0a337489923a0a747c5d313314baa26db3"
CLIENT_PLATFORM = "manylinux1_x86_64"
# by the names that the binary asks for: the server's wheel has them under names of its own
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
CHECK_SEED = 700_000
PROMPTS_PER_CLIENT = 20  # repeated when they run out
# Its measurement is three windows that agree within so many percent; a machine with other work misses the usual 10,
# and a fixed number of requests instead is divided by whole seconds.
WINDOWS = ("--measurement-interval", "5000", "--stability-percentage", "50")
SHAPES = ("--shape", "chat_input:1", "--shape", "stream:1", "--shape", "sampling_parameters:1")
CHECK_TIMEOUT_S = 300.0
THROUGHPUT = re.compile(r"(?:Response t|T)hroughput: ([\d.]+) (?:responses|infer)/sec")


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


def perf_analyzer(server: Served, release: str, clients: int, plan: BenchPlan, folder: Path) -> dict[str, Any]:
    """Let perf_analyzer measure the ensemble over gRPC with whole greedy answers, and return what it found.

    Args:
        server: A running server with the ensemble.
        release: The Triton release whose tree has the libraries.
        clients: Requests at once.
        plan: The answers' length.
        folder: Where its input and its report go.

    Returns:
        `clients`, `load`, `tokens_per_s`, and `report`, the lines that say so.

    Raises:
        FetchError: Its binary cannot be fetched.
        KitError: It failed.
    """
    libraries, workload = _perf_analyzer_folder(release), Workload("grpc")
    asked = prompts(PROMPTS_PER_CLIENT * clients, CHECK_SEED)
    rows = [request_body("ensemble", question, "", plan.max_tokens, workload) for question in asked]
    data = folder / "perf-analyzer-input.json"
    data.write_text(json.dumps({"data": [{name: [value] for name, value in row.items()} for row in rows]}))
    command = [str(libraries / "perf_analyzer"), "-m", "ensemble", "-u", server.grpc_url, "-i", "grpc"]
    command += ["--streaming", "--async", "--input-data", str(data), "--concurrency-range", str(clients)]
    command += ["--max-threads", str(clients), *WINDOWS, *SHAPES]
    text = _output_of(command, libraries, folder / "perf-analyzer.log")
    report = [line.strip() for line in text.splitlines() if "hroughput" in line or "latency" in line]
    speed = round(float(THROUGHPUT.findall(text)[0]) * plan.max_tokens, 1)
    return {"clients": clients, "load": workload.name, "tokens_per_s": speed, "report": report}


def _perf_analyzer_folder(release: str) -> Path:
    """Return the folder with the binary and the libraries it needs, unpacked once into the cache."""

    def make(draft: Path) -> None:
        wheel = fetch_wheel(CLIENT, CLIENT_VERSION, sha256=CLIENT_SHA256, platform=CLIENT_PLATFORM)
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/bin/perf_analyzer"))
            (draft / "perf_analyzer").write_bytes(archive.read(name))
        (draft / "perf_analyzer").chmod(0o755)
        for link, pattern in LIBRARIES.items():
            found = next((server_tree(get_release(release)) / "nvidia_pytriton.libs").glob(pattern))
            (draft / link).symlink_to(found)

    return build_once(cache_dir() / "perf_analyzer" / f"{CLIENT_VERSION}-{release}", make, "perf_analyzer")


def _output_of(command: list[str], libraries: Path, log: Path) -> str:
    """Return what perf_analyzer printed; raise if no throughput is among it."""
    environment = os.environ | {"LD_LIBRARY_PATH": f"{libraries}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}"}
    with log.open("wb") as output:
        try:
            done = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=CHECK_TIMEOUT_S, env=environment, check=False
            )
            ended = f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"no end within {CHECK_TIMEOUT_S:g} s"
    text = log.read_text(errors="replace")
    if not THROUGHPUT.search(text):
        raise KitError(
            "cross-check with perf_analyzer",
            found=ended,
            hint="run the bench without --cross-check, or read what it said",
            log_path=log,
            log_tail=text.splitlines()[-12:],
        )
    return text
