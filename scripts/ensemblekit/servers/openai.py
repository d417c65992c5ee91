# SPDX-License-Identifier: Apache-2.0
"""The gateway for clients of OpenAI's API (env/openai): a process of its own that ends with the server behind it."""

import os
import sys
from typing import Self

from ensemblekit.clients.http import answers_ok
from ensemblekit.faults.log import TAIL_LINES
from ensemblekit.paths import repo_root
from ensemblekit.servers.many import ManyServers
from ensemblekit.servers.ports import EVERYWHERE, LOOPBACK, free_ports, new_key, require_free
from ensemblekit.servers.process import TritonServer
from ensemblekit.servers.supervised import Supervised, SupervisedProcess

__all__ = ["CHAT", "OpenAIGateway"]

CHAT = "chat"  # the model that clients name
KEY_VARIABLE = "ENSEMBLEKIT_OPENAI_KEY"
PROGRAM = repo_root() / "env" / "openai" / "gateway.py"
START_TIMEOUT_S = 60.0  # under a second on an idle machine


class OpenAIGateway(Supervised):
    """OpenAI's chat completions in front of a running server.

    Attributes:
        key: What clients send as their key; empty on this machine's own address, unless the user has set one.
        log_path: What the gateway says.
    """

    def __init__(
        self, server: TritonServer | ManyServers, *, host: str = LOOPBACK, port: int | None = None, model: str = CHAT
    ) -> None:
        """Prepare a gateway; nothing runs until `start`.

        Args:
            server: A running server with the model, or several.
            host: Where it listens.
            port: A free one if left out.
            model: An ensemble with the tensors of `chat`.
        """
        self._server, self._host, self._port = server, host, port or free_ports(1)[0]
        self._model = model
        self.key = os.environ.get(KEY_VARIABLE) or ("" if host == LOOPBACK else new_key())
        self.log_path = server.folder / "openai.log"

    @property
    def base_url(self) -> str:
        """What a client of OpenAI's API takes as `base_url`."""
        host = LOOPBACK if self._host == EVERYWHERE else self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}/v1"

    def start(self) -> Self:
        """Start it and return it once it answers.

        Raises:
            PortBusy: Something else listens there.
            ServerExited: It ended, or did not answer in time.
        """
        require_free(self._port)
        command = [sys.executable, str(PROGRAM), "--triton", self._server.http_url, "--model", self._model]
        command += ["--host", self._host, "--port", str(self._port), "--ends-with", str(self._server.pid)]
        self._process = SupervisedProcess(
            command, self.log_path, environment=os.environ | {KEY_VARIABLE: self.key}, folder=self._server.folder
        )
        self._process.require_answer(
            lambda: answers_ok(self.base_url.removesuffix("v1") + "health"),
            START_TIMEOUT_S,
            attempted=f"start the gateway for OpenAI's API on {self._host}:{self._port}",
            late="it did not answer in time",
            hint="read its log; another --openai PORT may help",
            tail_lines=TAIL_LINES,
        )
        return self

    def __str__(self) -> str:
        return f"model {self._model}{f', key {self.key}' if self.key else ''}"

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_error: object) -> None:
        """Stop."""
        self.stop()
