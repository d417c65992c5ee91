# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit serve`: a server in the foreground, for readers who want to ask it from another shell."""

import os
import time
from collections.abc import Mapping

from rich.console import Console

from ensemblekit.errors import ServerExited
from ensemblekit.faults.catalogue import container_refusal
from ensemblekit.lesson.lesson import Lesson
from ensemblekit.paths import RUN_DIR_VARIABLE, new_run_id, runs_dir
from ensemblekit.servers.process import TritonServer
from ensemblekit.settings import check_settings

__all__ = ["serve_forever"]

WATCH_S = 0.5  # how soon a server that dies is noticed


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
    os.environ.setdefault(RUN_DIR_VARIABLE, str(runs_dir() / new_run_id("serve")))
    settings = check_settings(**parameters, READY_TIMEOUT_S=ready_timeout_s)
    lesson, console = Lesson("serve", settings), Console()
    console.print(f"Starting {settings}", highlight=False)
    server = lesson.server(lesson.repository())
    try:
        lesson.start(server)
        _say(console, server)
        while server.running:
            time.sleep(WATCH_S)
        code = server.exit_code
    finally:
        lesson.stop()
    refused = container_refusal(code, "")
    raise ServerExited(
        "keep the server running",
        found=f"it ended by itself with exit code {code}",
        hint=refused.hint if refused else "read its log",
        log_path=server.log_path,
    )


def _say(console: Console, server: TritonServer) -> None:
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
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
