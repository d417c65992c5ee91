# SPDX-License-Identifier: Apache-2.0
"""The engine alone, without any server: the limit of all targets. Run by path, in a process of its own.

Reads JSON lines: first `{"arguments"}`, answered by `READY`; then `{"sampling", "batches"}`, a list of lists of
prompts, answered by `TIMES ` and a list of [begin, end] for each batch, in seconds of the machine's monotonic clock.
"""

import json
import sys
import time


def main() -> None:
    """Serve batches until the input ends."""
    from vllm import LLM, SamplingParams

    llm = LLM(**json.loads(sys.stdin.readline())["arguments"])
    print("READY", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        sampling, times = SamplingParams(**job["sampling"]), []
        for batch in job["batches"]:
            begin = time.monotonic()
            llm.generate(batch, sampling, use_tqdm=False)
            times.append([begin, time.monotonic()])
        print("TIMES " + json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
