# SPDX-License-Identifier: Apache-2.0
"""A stop takes seconds, not Triton's whole exit timeout: the kit's clients leave no request behind."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemblekit.bench import _worker
from ensemblekit.clients.grpc import ask, ask_many
from ensemblekit.errors import RequestError
from ensemblekit.releases import get_release
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import TritonServer
from tests.conftest import DATA, slowdown

STOPPED_S = 5.0
EACH = 200
AT_ONCE = 32
FAILS = {"words": 3, "fail_after": 0}
ANSWERS = {"words": 5}

pytestmark = pytest.mark.server


@pytest.fixture
def a_server(tmp_path: Path) -> Iterator[TritonServer]:
    """A 24.08 server with the decoupled repository, for one test alone: the test stops it."""
    installation = install_embedded(get_release("24.08"), "base-plus-vllm", tmp_path)
    with TritonServer(installation, DATA / "decoupled_repository", tmp_path) as server:
        yield server
        server.kill()


def _one_by_one(server: TritonServer) -> None:
    for sampling in [FAILS, ANSWERS] * EACH:
        with contextlib.suppress(RequestError):
            ask(server, "Hi", sampling_parameters=sampling)


def _at_once(server: TritonServer) -> None:
    for sampling, _ in itertools.product([FAILS, ANSWERS], range(-(-EACH // AT_ONCE))):
        with contextlib.suppress(RequestError):
            asyncio.run(ask_many(server, ["Hi"] * AT_ONCE, sampling_parameters=sampling))


def _of_the_load_generator(server: TritonServer) -> None:
    import json

    bodies = [{"chat_input": "Hi", "sampling_parameters": json.dumps(way)} for way in [FAILS, ANSWERS] * EACH]
    job: dict[str, Any] = {"url": server.grpc_url, "protocol": "grpc", "model": "ensemble", "bodies": bodies}
    job |= {"lengths": [1] * len(bodies), "concurrency": AT_ONCE, "stream": False, "begin_s": 0.0}
    answers = asyncio.run(_worker.run(job))

    assert sum(pieces > 0 for _begin, _first, _end, pieces, _tokens in answers) == EACH


@pytest.mark.parametrize("requests", [_one_by_one, _at_once, _of_the_load_generator])
def test_stop_after_failed_and_answered_requests_takes_seconds(
    a_server: TritonServer, requests: Callable[[TritonServer], None]
) -> None:
    requests(a_server)
    begin = time.monotonic()
    a_server.stop()

    assert time.monotonic() - begin < STOPPED_S * slowdown()
