# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit serve`: a server in the foreground, for readers who want to ask it from another shell."""

import os
import platform
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ensemblekit.cli.options import COUNT, PORT, SECONDS, WORD, container_engine, device, engine, model, release
from ensemblekit.errors import ServerExited
from ensemblekit.paths import RUN_DIR_VARIABLE, new_run_id, runs_dir
from ensemblekit.servers.ports import EVERYWHERE, LOOPBACK, free_ports

if TYPE_CHECKING:
    from ensemblekit.lesson.lesson import Lesson
    from ensemblekit.servers.many import ManyServers
    from ensemblekit.servers.openai import OpenAIGateway
    from ensemblekit.servers.process import TritonServer

__all__ = ["choose_ports", "serve", "serve_forever"]

WATCH_S = 0.2  # how soon a server that dies is noticed


@click.command()
@release
@click.option("--flavour", type=WORD, default="base-plus-vllm", help="vllm-image, base-plus-vllm or custom-build.")
@engine
@device
@model
@click.option("--timeout", type=SECONDS, default=600.0, help="Seconds the server may take to load.")
@click.option("--provider", type=WORD, default="embedded", help="embedded (PyPI wheels) or container.")
@container_engine
@click.option("--host", type=WORD, default=LOOPBACK, help="Where HTTP and gRPC listen; 0.0.0.0 is every address.")
@click.option(
    "--servers", type=COUNT, default=1, help="So many servers behind one address (nginx), each on a GPU of its own."
)
@click.option("--port", type=PORT, help="HTTP's port; a free one if left out.")
@click.option("--grpc-port", type=PORT, help="gRPC's port; the next after --port if left out.")
@click.option(
    "--openai",
    type=click.IntRange(0, 65535),
    is_flag=False,
    flag_value=0,
    metavar="[PORT]",
    help="Also answer clients of OpenAI's API, there or on a free port; off this machine they need the key it prints.",
)
def serve(
    timeout: float,
    container_engine: str | None,
    host: str,
    servers: int,
    port: int | None,
    grpc_port: int | None,
    openai: int | None,
    **parameters: str,
) -> None:
    """Start a server on the staged model repository and keep it until Ctrl-C.

    It is for this machine alone unless --host says otherwise; who reaches it can ask it, but load or unload nothing.
    """
    from ensemblekit.servers.container_engine import choose_engine

    choose_engine(container_engine)
    given = {name.upper(): value for name, value in parameters.items()}
    ports = choose_ports(port, grpc_port)
    serve_forever(given, ready_timeout_s=timeout, servers=servers, openai=openai, host=host, ports=ports)


def choose_ports(http: int | None, grpc: int | None) -> tuple[int, int, int] | None:
    """Return the ports of HTTP, gRPC and metrics: in a row as in Triton's defaults, None for free ones."""
    if http is None and grpc is None:
        return None
    first = http or free_ports(1)[0]
    second = grpc or first + 1
    metrics = first + 2 if grpc is None else free_ports(1)[0]
    return first, second, metrics


def serve_forever(
    parameters: Mapping[str, str],
    *,
    ready_timeout_s: float,
    servers: int = 1,
    openai: int | None = None,
    **listening: Any,
) -> None:
    """Start a server, print how to reach it, and keep it until Ctrl-C.

    Args:
        parameters: As in a lesson's parameters cell.
        ready_timeout_s: How long it may take to load.
        servers: How many; more than one stand behind one address, and one that ends is started again.
        openai: The port for clients of OpenAI's API; 0 is a free one, None is none.
        **listening: `host` and `ports` of `ServerOptions`.

    Raises:
        ParameterError: A parameter is unknown or out of range.
        ServerExited: The server ended, at the start or later.
        ServerNotReady: It was not ready in time.
    """
    from ensemblekit.faults.catalogue import container_refusal
    from ensemblekit.lesson.lesson import Lesson
    from ensemblekit.settings import check_settings

    os.environ.setdefault(RUN_DIR_VARIABLE, str(runs_dir() / new_run_id("serve")))
    settings = check_settings(**parameters, READY_TIMEOUT_S=ready_timeout_s)
    lesson = Lesson("serve", settings)
    click.echo(f"Starting {settings}")
    if servers > 1:
        _serve_many(lesson, servers, openai, **listening)
        return
    server = lesson.server(lesson.repository(openai=openai is not None), **listening)
    gateway = None
    try:
        lesson.start(server)
        if openai is not None:
            gateway = lesson.openai_gateway(host=listening.get("host", LOOPBACK), port=openai or None)
        _say(server, gateway)
        while server.serves:
            time.sleep(WATCH_S)
        code = server.exit_code
        if server.why_ended:
            click.echo(f"{server.why_ended}: the server is ended", err=True)
            server.kill()  # what is under way in it gets no answer any more
    finally:
        lesson.stop()
    refused = None if server.why_ended else container_refusal(code, "")
    raise ServerExited(
        "keep the server running",
        found=server.why_ended or f"it ended by itself with exit code {code}",
        hint=refused.hint if refused else "read its log",
        log_path=server.log_path,
    )


def _serve_many(
    lesson: "Lesson", count: int, openai: int | None, host: str = LOOPBACK, ports: tuple[int, ...] | None = None
) -> None:
    """Keep several servers behind one address until Ctrl-C, or until none can be started any more."""
    from ensemblekit.servers.many import ManyServers
    from ensemblekit.servers.openai import OpenAIGateway

    settings = lesson.settings
    repository = lesson.repository(openai=openai is not None, servers=count)

    def make(name: str, own: tuple[int, int, int], place: dict[str, str]) -> "TritonServer":
        placed = replace(repository, environment=repository.environment | place)
        return lesson.server(placed, name=name, ports=own)

    device = "cpu" if settings.engine == "stand-in" else settings.resolved_device
    many = ManyServers(count, make, lesson.run_dir / "nginx", device=device, host=host, ports=ports or ())
    with ExitStack() as stack:
        stack.callback(many.stop)
        many.start(settings.ready_timeout_s)
        gateway = OpenAIGateway(many, host=host, port=openai or None) if openai is not None else None
        if gateway:
            stack.enter_context(gateway)
        _say(many, gateway)
        many.keep(click.echo, settings.ready_timeout_s)


def _say(server: "TritonServer | ManyServers", gateway: "OpenAIGateway | None") -> None:
    from ensemblekit.servers.many import ManyServers

    http, grpc = server.http_url, server.grpc_url
    in_a_row = int(grpc.rpartition(":")[2]) == int(http.rpartition(":")[2]) + 1
    one_by_one = server.servers if isinstance(server, ManyServers) else (server,)
    host = server.balancer.host if isinstance(server, ManyServers) else server.options.host
    address = _seen_from_outside(host, http if in_a_row else f"{http},{grpc}")
    rest = "" if isinstance(server, ManyServers) else " Answers under way are finished first, for up to 30 s."
    body = '{"chat_input": "What is the capital of France?"}'
    lines = [
        f"Ready. Ctrl-C stops it.{rest}",
        f"  HTTP     http://{http}",
        f"  gRPC     {grpc}",
        *(f"  metrics  http://{one.metrics_url}/metrics" for one in one_by_one),
        *(f"  log      {one.log_path}" for one in one_by_one),
        *([f"  OpenAI   {gateway} at {_seen_from_outside(host, gateway.base_url)}"] if gateway else []),
        "Ask it from another shell:",
        f"  curl -s http://{http}/v2/models/ensemble/generate -d '{body}'",
        "Use it in the lessons and exercises that take a URL:",
        f"  scripts/lab --url {address}",
    ]
    click.echo("\n".join(lines))


def _seen_from_outside(host: str, address: str) -> str:
    return address.replace(LOOPBACK, platform.node()) if host == EVERYWHERE else address
