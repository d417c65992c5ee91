# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's own load generator, perf_analyzer, on the same server: does it find what the bench found?

Its binary travels in the wheels of tritonclient up to 2.50 (the package perf-analyzer on PyPI holds none).
"""

import json
import os
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

from ensemblekit.assets.store import build_once, fetch_wheel
from ensemblekit.bench.plan import BenchPlan, Load, prompts, request_body
from ensemblekit.clients.grpc import Served
from ensemblekit.errors import KitError
from ensemblekit.paths import cache_dir
from ensemblekit.releases import get_release
from ensemblekit.servers.embedded import server_tree

__all__ = ["perf_analyzer", "perf_analyzer_binary"]

CLIENT, CLIENT_VERSION = "tritonclient", "2.49.0"  # the release of 24.08
CLIENT_SHA256 = "e7b40ba11056c93da434bc8a8b302c0a337489923a0a747c5d313314baa26db3"
CLIENT_PLATFORM = "manylinux1_x86_64"
# by the names that the binary asks for: the server's wheel has them under names of its own
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
SEED = 700_000
PROMPTS_PER_CLIENT = 20  # repeated when they run out
# Its measurement is three windows that agree within so many percent; a machine with other work misses the usual 10,
# and a fixed number of requests instead is divided by whole seconds.
INTERVAL_MS, STABILITY_PERCENT = 5000, 50
TIMEOUT_S = 300.0
THROUGHPUT = re.compile(r"(?:Response t|T)hroughput: ([\d.]+) (?:responses|infer)/sec")


def perf_analyzer_binary(release: str) -> tuple[Path, Path]:
    """Return the binary and the folder of the libraries it needs, unpacked once into the cache.

    Args:
        release: The Triton release whose tree has the libraries.

    Raises:
        FetchError: The wheel cannot be fetched.
    """

    def make(draft: Path) -> None:
        wheel = fetch_wheel(CLIENT, CLIENT_VERSION, sha256=CLIENT_SHA256, platform=CLIENT_PLATFORM)
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/bin/perf_analyzer"))
            (draft / "perf_analyzer").write_bytes(archive.read(name))
        (draft / "perf_analyzer").chmod(0o755)
        for link, pattern in LIBRARIES.items():
            found = next((server_tree(get_release(release)) / "nvidia_pytriton.libs").glob(pattern))
            (draft / link).symlink_to(found)

    folder = build_once(cache_dir() / "perf_analyzer" / f"{CLIENT_VERSION}-{release}", make)
    return folder / "perf_analyzer", folder


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
    binary, libraries = perf_analyzer_binary(release)
    load = Load("grpc")
    count = PROMPTS_PER_CLIENT * clients
    rows = [request_body("ensemble", question, "", plan.max_tokens, load) for question in prompts(count, SEED)]
    data, log = folder / "perf-analyzer-input.json", folder / "perf-analyzer.log"
    data.write_text(json.dumps({"data": [{name: [value] for name, value in row.items()} for row in rows]}))
    command = [str(binary), "-m", "ensemble", "-u", server.grpc_url, "-i", "grpc", "--streaming", "--async"]
    command += ["--input-data", str(data), "--concurrency-range", str(clients), "--max-threads", str(clients)]
    command += [
        "--measurement-interval",
        str(INTERVAL_MS),
        "--stability-percentage",
        str(STABILITY_PERCENT),
        "--shape",
        "chat_input:1",
        "--shape",
        "stream:1",
    ]
    command += ["--shape", "sampling_parameters:1"]
    environment = os.environ | {"LD_LIBRARY_PATH": f"{libraries}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment, check=False)
        text, ended = done.stdout + done.stderr, f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        text, ended = str(error.stdout or ""), f"no end within {TIMEOUT_S:g} s"
    log.write_text(text)
    found = THROUGHPUT.findall(text)
    if not found:
        raise KitError(
            "cross-check with perf_analyzer",
            found=ended,
            hint="run the bench without --cross-check, or read what it said",
            log_path=log,
            log_tail=text.splitlines()[-12:],
        )
    report = [line.strip() for line in text.splitlines() if "hroughput" in line or "latency" in line]
    speed = round(float(found[0]) * plan.max_tokens, 1)
    return {"clients": clients, "load": load.name, "tokens_per_s": speed, "report": report}
