# SPDX-License-Identifier: Apache-2.0
"""Measure the probe: `python -m ensemblekit.diagnose.doctor.measure [RUNS]`; the tests assert nothing on time."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from ensemblekit.diagnose.probe.target import probe_target
from ensemblekit.errors import CheckFailed
from ensemblekit.releases import FLAVOURS, get_release, has_ensembles, list_releases

__all__ = ["measure"]

RUNS = 20
PROGRAM = Path(sys.executable).with_name("ensemblekit")


def measure(runs: int = RUNS) -> list[tuple[str, str, int, float, float, float]]:
    """Probe each release with and without ensembles, in turn.

    Returns:
        Rows of target, verdict, right verdicts, median and worst seconds from the start of the server's process,
        and the median of the whole command, from the start of the command's own process.

    Raises:
        CheckFailed: A verdict was wrong.
        KitError: A server could not be had.
    """
    targets = [f"{row.name}/{flavour}" for row in list_releases() for flavour in FLAVOURS[:2]]
    seconds: dict[str, list[float]] = {target: [] for target in targets}
    commands: dict[str, list[float]] = {target: [] for target in targets}
    for _ in range(runs):
        for target in targets:  # in turn, so that the machine's other work is spread over all of them
            answer = probe_target(target)
            if answer.ensembles is not _wanted(target):
                raise CheckFailed(f"trust the probe of {target}", found=str(answer), hint="keep the log and look")
            seconds[target].append(answer.elapsed_s)
            begin = time.monotonic()
            subprocess.run([PROGRAM, "probe", target], stdout=subprocess.DEVNULL, check=False)
            commands[target].append(time.monotonic() - begin)
    return [
        (
            target,
            "yes" if _wanted(target) else "no",
            len(times),
            statistics.median(times),
            max(times),
            statistics.median(commands[target]),
        )
        for target, times in seconds.items()
    ]


def _wanted(target: str) -> bool:
    name, flavour = target.split("/")
    return has_ensembles(get_release(name), next(known for known in FLAVOURS if known == flavour))


if __name__ == "__main__":
    print("target                 verdict  runs  median s  worst s  whole command, median s")
    for row in measure(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS):
        print("{:22} {:7} {:5} {:9.3f} {:8.3f} {:8.2f}".format(*row))
