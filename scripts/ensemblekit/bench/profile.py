# SPDX-License-Identifier: Apache-2.0
"""Where the time of the backend's process goes under load: py-spy samples it while the bench asks the ensemble."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from ensemblekit.errors import KitError, UnsupportedMachine
from ensemblekit.faults.log import STUB_NAME
from ensemblekit.servers.process import TritonServer

__all__ = ["profile_backend", "shares_of"]

RATE_HZ = 200
MOST_FUNCTIONS = 12  # of each thread; what is below is noise
THREAD = re.compile(r'^thread \((?:0x)?\w+\)(?:: "?(.*?)"?)?$')
STOP_TIMEOUT_S = 30.0


def profile_backend(
    server: TritonServer, model: str, seconds: int, folder: Path, work: Callable[[], object]
) -> dict[str, Any]:
    """Sample the Python process of a model while `work` runs, and return where its time went.

    Args:
        server: A running server.
        model: The model whose process is sampled.
        seconds: For how long; `work` should take longer.
        folder: Where the raw stacks go.
        work: Keeps the model busy.

    Returns:
        For each thread its share of all samples, and of its own samples the share that each function was on the stack.

    Raises:
        UnsupportedMachine: py-spy is not installed.
        KitError: It may not look into the process, or the model has none.
    """
    program = shutil.which("py-spy")
    if program is None:
        raise UnsupportedMachine("profile the backend", found="no py-spy on the PATH", hint="pip install py-spy")
    pid, raw = _stub_of(server, model), folder / f"profile-{model}.txt"
    command = [program, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(RATE_HZ)]
    command += ["--format", "raw", "--threads", "--nonblocking", "--output", str(raw)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as sampler:
        work()
        said, _ = sampler.communicate(timeout=seconds + STOP_TIMEOUT_S)
    if not raw.is_file():
        raise KitError(
            f"profile the process of {model}",
            found=(said.strip().splitlines() or ["no message"])[-1],
            hint="py-spy needs the right to look into the process: run as its user, with kernel.yama.ptrace_scope 0",
        )
    return shares_of(raw.read_text()) | {"model": model, "seconds": seconds}


def _stub_of(server: TritonServer, model: str) -> int:
    """Return the process id of a model's stub; Triton names the model file among its arguments."""
    for process in psutil.Process(server.pid).children(recursive=True):
        words = process.cmdline()
        if words and words[0].endswith(STUB_NAME) and any(f"/{model}/" in word or word == model for word in words):
            return process.pid
    raise KitError(f"profile the process of {model}", found="no stub of that model", hint="is it a Python model?")


def shares_of(raw: str) -> dict[str, Any]:
    r"""Return threads and functions by share from py-spy's raw format: `frame;frame;frame count` a line.

    >>> found = shares_of('thread (0x1): "loop";run (a.py:1);send (b.py:2) 3\\nthread (0x2): "io";wait (c.py:3) 1')
    >>> found["threads"][0]["name"], found["threads"][0]["share"], found["threads"][0]["functions"]["send (b.py)"]
    ('loop', 0.75, 1.0)
    """
    totals, functions = Counter[str](), dict[str, Counter[str]]()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        match = THREAD.match(frames[0])
        name = (match[1] if match else None) or frames[0]
        totals[name] += int(count)
        seen = {re.sub(r":\d+\)$", ")", frame) for frame in frames[1:]}  # once a stack, whatever its line
        functions.setdefault(name, Counter()).update(dict.fromkeys(seen, int(count)))
    everything = sum(totals.values()) or 1
    return {
        "samples": sum(totals.values()),
        "threads": [
            {
                "name": name,
                "share": round(count / everything, 3),
                "functions": {
                    function: round(own / count, 3) for function, own in functions[name].most_common(MOST_FUNCTIONS)
                },
            }
            for name, count in totals.most_common()
        ],
    }
