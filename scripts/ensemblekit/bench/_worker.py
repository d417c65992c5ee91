# SPDX-License-Identifier: Apache-2.0
"""One process of the load generator: reads jobs as JSON lines, writes the times of their answers as JSON lines.

A job: `{"url", "protocol", "model", "bodies", "lengths", "concurrency", "stream", "begin_s"}`. Its answer: a list of
[begin, first piece, end, pieces, tokens] for each body, in seconds of the machine's monotonic clock; 0 pieces: failed.
Run by path, so that it starts quickly.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

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
    import numpy as np
    from tritonclient.grpc import InferInput
    from tritonclient.grpc._utils import _get_inference_request

    def tensor(name: str, value: Any) -> Any:
        kind, dtype = ("BOOL", np.bool_) if isinstance(value, bool) else ("BYTES", np.object_)
        given = InferInput(name, [1], kind)
        given.set_data_from_numpy(np.array([value if kind == "BOOL" else value.encode()], dtype=dtype))
        return given

    inputs = [tensor(name, value) for name, value in body.items()]
    request = _get_inference_request(model, inputs, "", "", None, 0, False, False, 0, None, None)
    # the asynchronous client cannot ask for it; without it a stream may never end
    request.parameters["triton_enable_empty_final_response"].bool_param = True

    async def once() -> AsyncIterator[Any]:
        yield request

    begin, end, first, pieces, failed = time.monotonic(), 0.0, 0.0, 0, False
    # to its end: Triton keeps a request for ever whose client leaves at the last response
    async for response in client._client_stub.ModelStreamInfer(once()):
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


def main() -> None:
    """Serve jobs until the input ends."""
    with asyncio.Runner() as runner:  # one loop for all jobs: gRPC's poller stays with the first it sees
        for line in sys.stdin:
            print(json.dumps(runner.run(run(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
