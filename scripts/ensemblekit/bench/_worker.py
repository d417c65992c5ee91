# SPDX-License-Identifier: Apache-2.0
"""One process of the load generator: reads jobs as JSON lines, writes the times of their answers as JSON lines.

A job: `{"url", "protocol", "model", "bodies", "lengths", "concurrency", "stream", "begin_s"}`. Its answer: a list of
[begin, first piece, end, pieces, tokens] for each body, in seconds of the machine's monotonic clock; 0 pieces: failed.
Run by path, so that it starts quickly.

`_worker.py FIFO` is the engine alone instead, without any server: the limit of all targets. The FIFO names files, one a
line: first one with the engine's arguments, answered by `READY`; then ones with `{"sampling", "batches"}`, a list of
lists of prompts, answered by `TIMES ` and a list of [begin, end] for each batch.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TextIO

import aiohttp

Answer = list[float]
Ask = Callable[[dict[str, Any]], Awaitable[Answer]]
TIMEOUT_S = 120.0  # of one answer; a lost one counts as failed


async def ask_http(session: aiohttp.ClientSession, url: str, stream: bool, body: dict[str, Any]) -> Answer:
    """Send one request and return when it began, when its first piece came, when it ended, and its pieces."""
    begin, first, pieces = time.monotonic(), 0.0, 0
    async with session.post(url, json=body) as response:
        if stream:
            async for line in response.content:
                if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                    pieces += 1
                    first = first or time.monotonic()
        else:
            await response.read()
            pieces = 1
        end = time.monotonic()
        failed = response.status != 200
    return [begin, first or end, end, 0 if failed else pieces]


async def ask_grpc(client: Any, model: str, body: dict[str, Any]) -> Answer:
    """The same over gRPC; a decoupled model needs a stream of its own for each request."""
    from ensemblekit.clients.grpc import input_tensor, stream_responses

    inputs = [input_tensor(name, value) for name, value in body.items()]
    begin, end, first, pieces, failed = time.monotonic(), 0.0, 0.0, 0, False
    # to its end: Triton keeps a request for ever whose client leaves at the last response
    async for response in stream_responses(client, model, inputs):
        failed = failed or bool(response.error_message)
        if response.infer_response.outputs:
            pieces += 1
            first = first or time.monotonic()
        if response.error_message or response.infer_response.parameters["triton_final_response"].bool_param:
            end = time.monotonic()
    end = end or time.monotonic()
    return [begin, begin, end, 0] if failed else [begin, first or end, end, pieces]


async def run(job: dict[str, Any]) -> list[Answer]:
    """Let `concurrency` clients work through the bodies, from the agreed moment on."""
    async with _asker(job) as ask:
        bodies = zip(job["bodies"], job["lengths"], strict=True)
        answers: list[Answer] = []

        async def client() -> None:
            for body, tokens in bodies:
                begin = time.monotonic()
                try:
                    async with asyncio.timeout(TIMEOUT_S):  # gRPC streams have none of their own
                        answers.append([*await ask(body), tokens])
                except (aiohttp.ClientError, TimeoutError, OSError):
                    answers.append([begin, begin, time.monotonic(), 0, tokens])

        await asyncio.sleep(max(0.0, job["begin_s"] - time.monotonic()))
        await asyncio.gather(*(client() for _ in range(job["concurrency"])))
    return answers


@asynccontextmanager
async def _asker(job: dict[str, Any]) -> AsyncIterator[Ask]:
    """Give what sends one request of the job, over connections that end with it."""
    if job["protocol"] == "grpc":
        from tritonclient.grpc.aio import InferenceServerClient

        async with InferenceServerClient(job["url"]) as client:
            yield lambda body: ask_grpc(client, job["model"], body)
        return
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield lambda body: ask_http(session, job["url"], job["stream"], body)


def serve_engine(jobs: TextIO) -> None:
    """Let the engine alone answer batches until the input ends."""
    from vllm import LLM, SamplingParams

    llm = LLM(**_job(jobs.readline()))
    print("READY", flush=True)
    for line in jobs:
        job = _job(line)
        sampling, times = SamplingParams(**job["sampling"]), []
        for batch in job["batches"]:
            begin = time.monotonic()
            llm.generate(batch, sampling, use_tqdm=False)
            times.append([begin, time.monotonic()])
        print("TIMES " + json.dumps(times), flush=True)


def _job(line: str) -> dict[str, Any]:
    with open(line.rstrip("\n")) as file:
        job: dict[str, Any] = json.load(file)
    return job


def main() -> None:
    """Serve jobs until the input ends."""
    if sys.argv[1:]:
        with open(sys.argv[1]) as jobs:
            serve_engine(jobs)
        return
    with asyncio.Runner() as runner:  # one loop for all jobs: gRPC's poller stays with the first it sees
        for line in sys.stdin:
            print(json.dumps(runner.run(run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
