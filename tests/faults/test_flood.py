# SPDX-License-Identifier: Apache-2.0
"""Thousands of requests, good and bad and broken: each good one gets its own answer, each bad one its own error.

A gRPC client that cancels while its last response is being written makes the stop of Triton 24.08 take its whole exit
timeout (tests/servers/test_stop.py); those here that cancel do it over HTTP, or before anything was sent to them.
Triton does not tell `llm` that a client of the ensemble has left, and a stop waits for what is under way. So clients
that leave ask for short answers too.
"""

import asyncio
import json
import random
import re
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import tritonclient.grpc.aio as triton_aio

from ensemblekit.assets.weights import ensure_checkpoint
from ensemblekit.clients.grpc import ask, request_body, request_inputs, stream_responses
from ensemblekit.paths import repo_root
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import TritonServer
from tests.conftest import slowdown
from tests.faults.conftest import LONG, Report

REQUESTS = 10_000 if LONG else 2_000
WARM_UP = 500  # until the stubs have grown their shared memory and the threads are there
AT_ONCE = 64
ANSWERED_S = 60.0  # one request among 64 on a busy machine; what takes longer is lost
STOPPED_S = 5.0
GROWTH_MIB = 48.0
VLLM_REQUESTS, VLLM_WARM_UP = 1_500, 100
VLLM_GROWTH_MIB = 256.0  # of the engine's processes too; vLLM keeps what it has compiled of each grammar
STILL_THERE = "(stand-in) You asked: Still there?"  # what the stand-in says; vLLM is held to the same words
TOKEN_S = 0.0002  # so that a cancelled request may be under way
INSIDE = re.compile(r"Traceback|\.py\b|line \d+, in|/(?:home|root|tmp|usr|opt|work)/")
DEEP = "[" * 50_000

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(3600)]


@dataclass
class Flood:
    """Clients of one server; each way of asking returns what was wrong, nothing if it held."""

    server: TritonServer
    http: httpx.AsyncClient
    grpc: triton_aio.InferenceServerClient
    vllm: bool

    @property
    def _url(self) -> str:
        return f"http://{self.server.http_url}/v2/models/ensemble"

    async def valid(self, number: int) -> str:
        answer = await self.http.post(f"{self._url}/generate", json=self._body(number))
        if answer.status_code != httpx.codes.OK:
            return answer.text
        return self._differs(answer.json().get("text_output"), number)

    async def no_limit(self, number: int) -> str:
        body = self._body(number, {"max_tokens": None})
        answer = await self.http.post(f"{self._url}/generate", json=body)
        return self._differs(answer.json().get("text_output"), number)

    async def streamed_http(self, number: int) -> str:
        pieces = []
        body = self._body(number, stream=True)
        async with self.http.stream("POST", f"{self._url}/generate_stream", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    pieces.append(json.loads(line.removeprefix("data:"))["text_output"])
        return self._differs("".join(pieces), number, pieces)

    async def streamed_grpc(self, number: int) -> str:
        pieces = []
        inputs = request_inputs(question(number), sampling_parameters=self._parameters(number), stream=True)
        async for response in stream_responses(self.grpc, "ensemble", inputs):
            if response.error_message:
                return str(response.error_message)
            if response.infer_response.raw_output_contents:
                pieces.append(response.infer_response.raw_output_contents[0][4:].decode())
        return self._differs("".join(pieces), number, pieces)

    async def cancelled_http(self, number: int) -> str:
        body = self._body(number, stream=True)
        async with self.http.stream("POST", f"{self._url}/generate_stream", json=body) as answer:
            async for _line in answer.aiter_lines():
                break
        return ""

    async def cancelled_grpc(self, number: int) -> str:
        """Leave when the request is in a queue, before anything was sent."""
        inputs = request_inputs(question(number), sampling_parameters=self._parameters(number), stream=True)
        call = stream_responses(self.grpc, "ensemble", inputs)
        await asyncio.sleep(random.Random(number).uniform(0, 0.005))
        call.cancel()  # type: ignore[attr-defined]
        return ""

    async def invalid(self, number: int) -> str:
        """Ask what cannot be answered; the error names what is wrong, and shows nothing of the server's inside."""
        parameters, wanted = wrong_parameters(number, vllm=self.vllm)
        body: dict[str, Any] = {"chat_input": question(number), "sampling_parameters": parameters}
        if parameters is None:
            body = {"chat_input": " "}
        answer = await self.http.post(f"{self._url}/generate", json=body)
        return wrong_error(answer, wanted)

    async def no_json(self, number: int) -> str:
        content = f'{{"chat_input": "{question(number)}"'
        answer = await self.http.post(f"{self._url}/generate", content=content)
        return wrong_error(answer, "failed to parse the request JSON buffer")

    async def slow(self, number: int) -> str:
        """Send a byte at a time, all but the request line: Triton 24.08 answers 404 if that comes in pieces."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.http_port)
        try:
            line, rest = self._raw(number).split(b"\r\n", 1)
            writer.write(line + b"\r\n")
            for byte in rest:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.001)
            answer = await reader.read()
        finally:
            writer.close()
        content = re.search(rb"{.*}", answer, re.DOTALL)  # its one chunk
        return self._differs(json.loads(content[0]).get("text_output") if content else None, number)

    async def broken(self, number: int) -> str:
        """Close the connection in the middle of the request, or of the answer; half of them with a reset."""
        chance = random.Random(number)
        _reader, writer = await asyncio.open_connection("127.0.0.1", self.server.http_port)
        raw = self._raw(number)
        writer.write(raw[: chance.choice((10, len(raw) // 2, len(raw) - 1, len(raw)))])
        await writer.drain()
        await asyncio.sleep(chance.choice((0.0, 0.002, 0.01)))
        if chance.random() < 0.5:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        return ""

    def _raw(self, number: int) -> bytes:
        body = json.dumps(self._body(number)).encode()
        head = f"POST /v2/models/ensemble/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        return f"{head}Connection: close\r\n\r\n".encode() + body

    def _body(self, number: int, more: dict[str, Any] | None = None, *, stream: bool = False) -> dict[str, str | bool]:
        return request_body(question(number), sampling_parameters=self._parameters(number, more), stream=stream)

    def _parameters(self, number: int, more: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Return sampling parameters; they hold vLLM to an answer that nobody else gets."""
        only = {"structured_outputs": {"choice": [self._expected(number)]}} if self.vllm else {}
        return {**only, **(more or {})} or None

    def _expected(self, number: int) -> str:
        return f"number {number}" if self.vllm else f"(stand-in) You asked: {question(number)}"

    def _differs(self, text: str | None, number: int, pieces: list[str] | None = None) -> str:
        """Return what is wrong with an answer, nothing if it is the question's own, and streamed if asked so."""
        if text != self._expected(number):
            return f"to {question(number)!r} the answer is {text!r}"
        return "" if pieces is None or len(pieces) > 1 else f"one piece: {pieces}"


KINDS: tuple[Callable[[Flood, int], Awaitable[str]], ...] = (
    *(Flood.valid, Flood.valid, Flood.no_limit, Flood.streamed_http, Flood.streamed_grpc, Flood.streamed_grpc),
    *(Flood.cancelled_http, Flood.cancelled_grpc, Flood.invalid, Flood.invalid, Flood.no_json),
    *(Flood.slow, Flood.broken),
)


def question(number: int) -> str:
    """Return a question that nobody else asks."""
    return f"What is {number} times {number * 7919}, and is ünïcode {number} kept?"


def wrong_parameters(number: int, *, vllm: bool) -> tuple[str | None, str]:
    """Return sampling parameters that are refused, or None for an empty question, and words of the error."""
    least = "max_tokens must be at least 1, got" if vllm else "max_tokens must be a whole number, at least 1, not"
    infinite = "not a finite number" if vllm else f"{least} inf"
    return random.Random(number).choice(
        (
            (f'{{"number_{number}": 1}}', f'unknown sampling parameter \\"number_{number}\\"'),
            (f'{{"max_tokens": {number}', "sampling_parameters is not valid JSON"),
            (f'{{"max_tokens": -{number + 1}}}', f"{least} -{number + 1}"),
            ('{"max_tokens": 1e999}', infinite),
            (f"[{number}]", "sampling_parameters must be a JSON object"),
            (DEEP, "sampling_parameters is nested too deeply"),
            (None, "chat_input is empty"),
        )
    )


def wrong_error(answer: httpx.Response, wanted: str) -> str:
    """Return what is wrong with an error, nothing if it has these words and none that are not for a client."""
    text = answer.text
    clear = answer.is_error and wanted in text and not INSIDE.search(text) and str(repo_root()) not in text
    return "" if clear else f"wanted {wanted!r}, got {text[:500]!r}"


async def flood(server: TritonServer, numbers: range, report: Report | None = None, *, vllm: bool = False) -> list[str]:
    """Send as many requests, so many at once, of kinds that follow from their numbers; return what was wrong."""
    limits = httpx.Limits(max_connections=AT_ONCE)
    wrong, places = list[str](), asyncio.Semaphore(AT_ONCE)
    async with (
        httpx.AsyncClient(limits=limits, timeout=ANSWERED_S, trust_env=False) as http,
        triton_aio.InferenceServerClient(server.grpc_url) as grpc,
    ):
        clients = Flood(server, http, grpc, vllm)

        async def one(number: int) -> None:
            kind = random.Random(number).choice(KINDS)
            async with places:
                began = time.monotonic()
                try:
                    found = await asyncio.wait_for(kind(clients, number), ANSWERED_S)
                except Exception as error:  # whatever it is, the request was lost
                    found = f"{type(error).__name__}: {error}"
            if found:
                wrong.append(f"{kind.__name__} {number}: {found}")
            if report:
                report.count(
                    f"requests{' to vLLM' * vllm}: {kind.__name__}", not found, seconds=time.monotonic() - began
                )

        await asyncio.gather(*map(one, numbers))
    return wrong


def memory_mib(server: TritonServer) -> dict[str, float]:
    """Return the resident memory of the server and of its models' processes."""
    found = {}
    above = psutil.Process(server.pid)
    for process in (above, *above.children(recursive=True)):
        words = process.cmdline()
        name = Path(words[1]).parts[-3] if "stub" in words[0] else Path(words[0]).name
        found[f"{name} {process.pid}"] = process.memory_info().rss / 2**20
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TritonServer]:
    """A server with the stand-in, for this test alone: the test stops it."""
    repository = stage_repository(tmp_path / "models", source=None, device="cpu", stand_in_token_s=TOKEN_S)
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path)
    with TritonServer(installation, repository.path, tmp_path, environment=repository.environment) as started:
        yield started
        started.kill()


def test_flood_of_the_stand_in(server: TritonServer, report: Report) -> None:
    _flood_and_stop(server, report, WARM_UP, REQUESTS, GROWTH_MIB)


@pytest.mark.skipif(not LONG, reason="the long form: a real vLLM")
def test_flood_of_vllm(tmp_path: Path, report: Report) -> None:
    pytest.importorskip("vllm", reason="needs vLLM: the CPU or CUDA environment, not the quick one")
    repository = stage_repository(tmp_path / "models", source=ensure_checkpoint(), device="cpu")
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path)
    with TritonServer(installation, repository.path, tmp_path, environment=repository.environment) as server:
        _flood_and_stop(server, report, VLLM_WARM_UP, VLLM_REQUESTS, VLLM_GROWTH_MIB, vllm=True)


def _flood_and_stop(
    server: TritonServer, report: Report, warm_up: int, requests: int, most_mib: float, *, vllm: bool = False
) -> None:
    """Assert that each request gets what is its own, that memory stays, and that the server then stops at once."""
    wrong = asyncio.run(flood(server, range(warm_up), vllm=vllm))
    before = memory_mib(server)
    began = time.monotonic()
    wrong += asyncio.run(flood(server, range(warm_up, warm_up + requests), report, vllm=vllm))
    seconds = time.monotonic() - began
    after = memory_mib(server)
    growth = {name: round(after[name] - before[name], 1) for name in before if name in after}
    only = {"structured_outputs": {"choice": [STILL_THERE]}}
    answer = ask(server, "Still there?", sampling_parameters=only).text
    began = time.monotonic()
    server.stop()
    stopped_s = time.monotonic() - began
    figures = {"requests": requests, "seconds": round(seconds, 1), "growth_mib": growth, "stop_s": round(stopped_s, 2)}
    report.note(f"flood{' of vLLM' * vllm}", **figures)

    assert not wrong, f"{len(wrong)} of {warm_up + requests}:\n" + "\n".join(sorted(wrong)[:40])
    assert set(after) == set(before), "a process ended, or one was added"
    assert sum(growth.values()) < most_mib, growth
    assert answer == STILL_THERE
    assert stopped_s < STOPPED_S * slowdown()
