# SPDX-License-Identifier: Apache-2.0
"""Where the seconds of a start went, by what the kit's backend and vLLM itself write into the server's log.

vLLM's words are those of 0.25 to 0.32. A phase that did not take place is absent: on the CPU nothing is compiled and
no graphs are captured, and the Python stand-in has no phases at all. Engines that start side by side, and the
workers of one engine, write the same lines: the slowest counts.
"""

import re
from datetime import datetime

__all__ = ["PHASES", "start_phases"]

# In the order in which they come, with what a picture says about them.
PHASES = {
    "import": "vLLM imported",
    "processes": "the engine's processes started",
    "weights": "weights loaded",
    "compile": "model compiled",
    "graphs": "CUDA graphs captured",
    "warm-up": "memory measured, warm-up",
    "rest": "everything else",
}
_IMPORTED = re.compile(r"\[vllm\] .*: loading weights and starting the engine, ([\d.]+) s after the start")
# e.g. (EngineCore pid=7) INFO 11-25 01:55:13 [core.py:133] ...
_STAMP = re.compile(r"\b[A-Z]+ (\d\d-\d\d \d\d:\d\d:\d\d) \[[\w.]+\.py:\d+\]")
_WORKER = re.compile(_STAMP.pattern + r" (?:rank \d+ in world size|Starting to load model|Loading model from scratch)")
_MODEL = re.compile(r"Model loading took \S+ GiB (?:memory )?and ([\d.]+) seconds")
_WEIGHTS = re.compile(r"Loading weights took ([\d.]+) seconds")
_COMPILE = re.compile(r"torch\.compile (?:and initial profiling/warmup run together )?took ([\d.]+) s in total")
_GRAPHS = re.compile(r"Graph capturing finished in ([\d.]+) secs")
_ENGINE = re.compile(r"init engine \(profile, create kv cache, warmup model\) took ([\d.]+) s")


def start_phases(text: str, total_s: float | None) -> dict[str, float]:
    """Return the phases of a start in their order, in seconds.

    Args:
        text: The server's log.
        total_s: Seconds from the start of the process until it was ready; None leaves `rest` out.

    >>> start_phases("Loading weights took 1.07 seconds", 3.0)
    {'weights': 1.07, 'rest': 1.93}
    """
    weights = _slowest(_MODEL, text) or _slowest(_WEIGHTS, text)  # the first holds the second, on a GPU
    compiled, graphs, engine = (_slowest(pattern, text) for pattern in (_COMPILE, _GRAPHS, _ENGINE))
    found = {
        "import": _slowest(_IMPORTED, text),
        "processes": _until_worker(text),
        "weights": weights,
        "compile": compiled,
        "graphs": graphs,
        # what vLLM calls the initialisation of the engine holds the compiling and capturing
        "warm-up": max(0.0, engine - (compiled or 0.0) - (graphs or 0.0)) if engine is not None else None,
    }
    phases = {name: seconds for name, seconds in found.items() if seconds is not None}
    if total_s is not None:
        phases["rest"] = max(0.0, total_s - sum(phases.values()))
    return {name: round(seconds, 2) for name, seconds in phases.items()}


def _slowest(pattern: re.Pattern[str], text: str) -> float | None:
    return max((float(match[1]) for match in pattern.finditer(text)), default=None)


def _until_worker(text: str) -> float | None:
    """Return the seconds from the backend's call of the engine until its worker is about to load the model.

    vLLM's own stamps are compared with each other, in whole seconds: another clock may be in another time zone.
    """
    called = _IMPORTED.search(text)
    first = _STAMP.search(text, called.end()) if called else None
    worker = _WORKER.search(text, first.start()) if first else None
    if first is None or worker is None:
        return None
    begin, end = (datetime.strptime(f"2024-{match[1]}", "%Y-%m-%d %H:%M:%S") for match in (first, worker))
    return max(0.0, (end - begin).total_seconds())
