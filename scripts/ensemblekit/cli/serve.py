# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit serve`: a server in the foreground, for readers who want to ask it from another shell."""

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from ensemblekit.cli.options import SECONDS, WORD, container_engine, device, engine, model, release
from ensemblekit.errors import ServerExited
from ensemblekit.paths import RUN_DIR_VARIABLE, new_run_id, runs_dir

if TYPE_CHECKING:
    from ensemblekit.servers.process import TritonServer

__all__ = ["command", "serve_forever"]

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
def command(timeout: float, container_engine: str | None, **parameters: str) -> None:
    """Start a server on the staged model repository and keep it until Ctrl-C."""
    from ensemblekit.servers.container_engine import choose_engine

    choose_engine(container_engine)
    serve_forever({name.upper(): value for name, value in parameters.items()}, ready_timeout_s=timeout)


def serve_forever(parameters: Mapping[str, str], *, ready_timeout_s: float) -> None:
    """Start a server, print how to reach it, and keep it until Ctrl-C.

    Args:
        parameters: As in a lesson's parameters cell.
        ready_timeout_s: How long it may take to load.

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
    server = lesson.server(lesson.repository())
    try:
        lesson.start(server)
        _say(server)
        while server.running and not server.why_ended:
            time.sleep(WATCH_S)
        code = server.exit_code
        if server.why_ended:
            click.echo(f"{server.why_ended}: the server is ended", err=True)
    finally:
        lesson.stop()
    refused = None if server.why_ended else container_refusal(code, "")
    raise ServerExited(
        "keep the server running",
        found=server.why_ended or f"it ended by itself with exit code {code}",
        hint=refused.hint if refused else "read its log",
        log_path=server.log_path,
    )


def _say(server: "TritonServer") -> None:
    url = f"http://{server.http_url}/v2/models/ensemble/generate"
    body = '{"chat_input": "What is the capital of France?"}'
    lines = [
        "Ready. Ctrl-C stops it.",
        f"  HTTP     http://{server.http_url}",
        f"  gRPC     {server.grpc_url}",
        f"  metrics  http://{server.metrics_url}/metrics",
        f"  log      {server.log_path}",
        "Ask it from another shell:",
        f"  curl -s {url} -d '{body}'",
    ]
    click.echo("\n".join(lines))
