# SPDX-License-Identifier: Apache-2.0
"""Two real Tritons behind one nginx: one is killed under 64 clients, and only what it had under way is lost."""

import asyncio
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import httpx
import psutil
import pytest
from grpc.aio import AioRpcError, Metadata
from tritonclient.grpc.aio import InferenceServerClient

from ensemblekit.clients.grpc import ask, model_statistics, request_body, request_inputs, stream_responses
from ensemblekit.clients.http import answers_ok
from ensemblekit.errors import PortBusy, ServerExited, UnsupportedMachine
from ensemblekit.paths import RUN_DIR_VARIABLE
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.many import ManyServers
from ensemblekit.servers.ports import free_ports, is_free
from ensemblekit.servers.process import ServerOptions, TritonServer
from ensemblekit.servers.supervised import wait_until
from tests.fake_nvidia_smi import FakeNvidiaSmi

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not shutil.which("nginx", path="/usr/sbin:/usr/bin"), reason="needs nginx (nginx-light)"),
]
CLIENTS = 64
ANSWERED = 300  # answers before the kill, so that the clients are spread over both servers
WORD_S = 0.002
START_S, BACK_S = 60.0, 120.0  # on two busy cores
# nginx may have taken an idle connection for a request before it saw that the server at its other end is gone
NOTICED_S = 1.0
SERVED_BY = "ensemblekit-server"


@dataclass
class Kept:
    """Two servers that are watched, and what was told about them."""

    many: ManyServers
    told: list[str]
    keeper: Future[None]

    def kill(self, server: TritonServer) -> float:
        """Kill a Triton, and return when its process was gone."""
        (triton,) = [
            one for one in psutil.Process(server.pid).children() if f"--http-port={server.http_port}" in one.cmdline()
        ]
        triton.kill()
        triton.wait(START_S)
        return time.monotonic()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    """Two servers of a stand-in that takes its time for each word."""
    staged = stage_repository(tmp_path / "models", source=None, device="cpu", stand_in_token_s=WORD_S)

    def make(name: str, ports: tuple[int, int, int], place: dict[str, str]) -> TritonServer:
        installation = install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path / name)
        return TritonServer(installation, staged.path, tmp_path / name, ServerOptions(ports=ports), place)

    told = list[str]()
    many = ManyServers(2, make, tmp_path, device="cpu")
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        stack.callback(many.stop)
        yield Kept(many, told, pool.submit(many.start(START_S).keep, told.append, START_S))


@dataclass
class Asked:
    """One request: when it was sent and answered, by whom, and what was wrong with the answer; None: it is lost."""

    begin: float
    end: float
    servers: tuple[str, ...]
    wrong: str | None


@dataclass
class Load:
    """Clients that each ask again once they are answered, until the address serves on both servers again."""

    address: ManyServers
    streamed: bool
    asked: list[Asked] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    async def run(self, enough: Callable[[], bool]) -> None:
        """Ask until it is enough."""
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(limit=0)
            self.http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            self.grpc = await stack.enter_async_context(InferenceServerClient(self.address.grpc_url))
            await asyncio.gather(*(self._client(number, enough) for number in range(CLIENTS)))

    async def _client(self, client: int, enough: Callable[[], bool]) -> None:
        number = 0
        while not enough():
            number += 1
            question = f"what is {client} and {number}"
            begin = time.monotonic()
            by, text = await (self._stream if self.streamed else self._whole)(question)
            wrong = None if text is None else "" if text == f"(stand-in) You asked: {question}" else text
            self.asked.append(Asked(begin, time.monotonic(), tuple(by.split(", ")), wrong))

    async def _whole(self, question: str) -> tuple[str, str | None]:
        url = f"http://{self.address.http_url}/v2/models/ensemble/generate"
        async with self.http.post(url, json=request_body(question)) as answer:
            by, said = answer.headers[SERVED_BY], await answer.json()
        if answer.status == httpx.codes.OK:
            return by, said["text_output"]
        self.errors[f"{answer.status} {said['error']}"] += 1
        return by, None

    async def _stream(self, question: str) -> tuple[str, str | None]:
        call = stream_responses(self.grpc, "ensemble", request_inputs(question, stream=True))
        pieces = list[str]()
        try:
            async for response in call:
                if response.error_message:
                    return await _by(call), response.error_message  # an answer of Triton's, and a wrong one
                pieces += [raw[4:].decode() for raw in response.infer_response.raw_output_contents]
        except AioRpcError as error:
            self.errors[f"{error.code().name} {error.details()}"] += 1
            return _named(error.initial_metadata()) or _named(error.trailing_metadata()), None
        return await _by(call), "".join(pieces)


async def _by(call: object) -> str:
    return _named(await call.initial_metadata())  # type: ignore[attr-defined]


def _named(metadata: Metadata) -> str:
    return str(dict(metadata).get(SERVED_BY, ""))


@pytest.mark.parametrize("streamed", [False, True], ids=["http-whole", "grpc-streamed"])
def test_server_that_is_killed_loses_what_it_had_under_way_and_comes_back(kept: Kept, streamed: bool) -> None:
    killed, other = kept.many.servers
    addresses = [server.grpc_url if streamed else server.http_url for server in kept.many.servers]
    load, at = Load(kept.many, streamed), {"gone": math.inf}

    def back() -> float | None:
        by_it = (one for one in load.asked if one.servers[-1] == addresses[0] and one.wrong is not None)
        return min((one.end for one in by_it if one.begin > at["gone"]), default=None)

    async def course() -> None:
        asking = asyncio.create_task(load.run(lambda: back() is not None))
        while len(load.asked) < ANSWERED and not asking.done():
            await asyncio.sleep(0.01)
        at["kill"] = time.monotonic()
        at["gone"] = await asyncio.to_thread(kept.kill, killed)
        await asyncio.wait_for(asking, BACK_S)

    before = model_statistics(other)["ensemble"].requests
    asyncio.run(course())
    run_by_other = model_statistics(other)["ensemble"].requests - before

    under_way = sum(one.begin < at["kill"] < one.end for one in load.asked)
    lost = [one for one in load.asked if one.wrong is None]
    came_back = back()
    assert came_back is not None
    print(
        f"{len(load.asked)} requests, {len(lost)} lost of {under_way} under way; both serve again "
        f"{came_back - at['kill']:.1f} s after the kill: {kept.told[1:]}; {dict(load.errors)}"
    )
    assert [one.wrong for one in load.asked if one.wrong] == []
    assert 0 < len(lost) < CLIENTS
    noticed = at["gone"] + NOTICED_S
    strangers = [one for one in lost if one.begin > noticed or one.servers not in ((addresses[0],), ("",))]
    assert strangers == []
    # what was run on the other server is what it answered: nothing was run twice
    assert run_by_other == sum(one.servers[-1] == addresses[1] for one in load.asked)
    ended, ready = kept.told
    assert ended == f"The server at {killed.http_url}: it ended with exit code 137; starting it again."
    assert re.fullmatch(rf"The server at {re.escape(killed.http_url)} is ready again after [\d.]+ s\.", ready)
    assert (killed.folder / "server.crashed.log").read_text()


def test_nothing_is_left_once_it_is_stopped_even_while_a_server_starts_again(kept: Kept) -> None:
    kept.kill(kept.many.servers[0])
    assert wait_until(lambda: kept.told or None, START_S)

    kept.many.stop()
    kept.keeper.result(START_S)

    ports = [port for one in kept.many.servers for port in (one.http_port, one.grpc_port, one.metrics_port)]
    assert all(is_free(port) for port in (*ports, *kept.many.balancer.ports))
    assert not any(server.running for server in kept.many.servers)
    assert _processes_of(kept.many.folder) == []


def _processes_of(folder: Path) -> list[str]:
    commands = (" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"]))
    return [command for command in commands if str(folder) in command]


def test_server_that_cannot_start_again_is_left_out_and_the_last_one_ends_all(kept: Kept) -> None:
    first, last = kept.many.servers
    (first.repository / "ensemble" / "config.pbtxt").write_text("no config")

    kept.kill(first)
    assert wait_until(lambda: len(kept.told) > 1 or None, START_S)
    assert "is left out: after" in kept.told[1]
    assert ask(kept.many, "Hi").text == "(stand-in) You asked: Hi"

    kept.kill(last)
    assert isinstance(kept.keeper.exception(START_S), ServerExited)
    assert _processes_of(kept.many.folder) == []


def test_nginx_that_is_killed_is_started_again_and_the_address_stays(kept: Kept) -> None:
    config = str(kept.many.balancer.config_path)
    commands = ((one, " ".join(one.info["cmdline"] or [])) for one in psutil.process_iter(["cmdline"]))
    nginx = next(one for one, command in commands if config in command and command.startswith("nginx: master"))

    nginx.kill()
    assert wait_until(lambda: kept.told or None, START_S)
    ready = f"http://{kept.many.http_url}/v2/health/ready"
    assert wait_until(lambda: answers_ok(ready) or None, START_S)

    assert kept.told == ["nginx ended, starting it again."]
    assert ask(kept.many, "Hi").text == "(stand-in) You asked: Hi"


def test_busy_port_is_said_before_a_server_is_made(kept: Kept, tmp_path: Path) -> None:
    def make(*_given: object) -> TritonServer:
        raise AssertionError("made")

    with pytest.raises(PortBusy, match="--port"):
        ManyServers(2, make, tmp_path / "second", device="cpu", ports=kept.many.balancer.ports)


def test_each_server_sees_one_gpu_of_a_fake_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvidiaSmi(free_mib=(81008, 81008)).install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake}{os.pathsep}{os.environ['PATH']}")
    places = list[dict[str, str]]()

    def make(_name: str, ports: tuple[int, int, int], place: dict[str, str]) -> TritonServer:
        places.append(place)
        installation = install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path)
        return TritonServer(installation, tmp_path, tmp_path, ServerOptions(ports=ports), place)

    ManyServers(2, make, tmp_path / "two", device="cuda")
    with pytest.raises(UnsupportedMachine, match="3 GPUs are asked for; 2 visible"):
        ManyServers(3, make, tmp_path / "three", device="cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    ManyServers(2, make, tmp_path / "turned", device="cuda")

    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["0", "1", "1", "0"]


def test_serve_with_two_servers_prints_one_address_and_leaves_nothing(tmp_path: Path) -> None:
    port = next(port for port in free_ports(200) if is_free(port + 1))
    command = [sys.executable, "-m", "ensemblekit.cli.main", "serve", "--engine", "stand-in", "--device", "cpu"]
    command += ["--servers", "2", "--port", str(port), "--openai"]
    environment = os.environ | {RUN_DIR_VARIABLE: str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        said = [next(process.stdout)]
        while "scripts/lab" not in said[-1]:
            said.append(next(process.stdout))
        base = re.findall(r"model chat at (http://127\.0\.0\.1:\d+/v1)", "".join(said))[0]
        url = f"http://127.0.0.1:{port}/v2/models/ensemble/generate"
        answers = [httpx.post(url, json=request_body("Hi"), timeout=600) for _ in range(4)]
        chat = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}
        told = httpx.post(f"{base}/chat/completions", json=chat, timeout=600).json()
        process.terminate()  # a shell that runs the tests in the background has SIGINT ignored
        process.wait(START_S)

    text = "(stand-in) You asked: Hi"
    assert [answer.json()["text_output"] for answer in answers] == [text] * 4
    assert len({answer.headers[SERVED_BY] for answer in answers}) == 2
    assert told["choices"][0]["message"]["content"] == text
    assert f"  HTTP     http://127.0.0.1:{port}\n" in said
    assert sum(line.startswith("  metrics") for line in said) == 2
    assert said[-1] == f"  scripts/lab --url 127.0.0.1:{port}\n"
    assert is_free(port)
    assert _processes_of(tmp_path) == []
