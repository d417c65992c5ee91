# SPDX-License-Identifier: Apache-2.0
"""Several servers behind one address: nginx gives each request to the one with the fewest under way."""

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Self

from ensemblekit.errors import ServerError
from ensemblekit.gpu import VISIBLE_VARIABLE, require_gpus
from ensemblekit.paths import repo_root
from ensemblekit.servers.nginx import Nginx, reachable, require_listening
from ensemblekit.servers.ports import LOOPBACK, free_ports
from ensemblekit.servers.process import READY_TIMEOUT_S, TritonServer

__all__ = ["ManyServers", "ServerMaker"]

WATCH_S = 0.2  # how soon a server that dies is noticed
# Makes one server: the name of its folder, its ports, and the variables that give it a GPU of its own.
ServerMaker = Callable[[str, tuple[int, int, int], dict[str, str]], TritonServer]


class ManyServers:
    """Servers on ports of their own, and nginx before them. Nothing runs until `start`.

    Behind the address stands the same repository several times. What is asked about the server itself, such as its
    statistics, one of them answers. Metrics are each server's own.

    Attributes:
        servers: All of them.
        balancer: nginx before them.
        folder: Where nginx's configuration and log go.
    """

    def __init__(
        self,
        count: int,
        make: ServerMaker,
        folder: Path,
        *,
        device: str,
        host: str = LOOPBACK,
        ports: tuple[int, ...] = (),
    ) -> None:
        """Choose ports and GPUs.

        Args:
            count: How many servers.
            make: Makes each.
            folder: Where nginx's files go.
            device: `cuda` gives each server a GPU of its own.
            host: The address at which nginx listens; the servers listen on loopback only.
            ports: Its ports for HTTP and gRPC; free ones if left out.

        Raises:
            ParameterError: The host is no address.
            UnsupportedMachine: nginx is not installed, or fewer GPUs are visible.
            PortBusy: Something else listens there.
        """
        own = [port for port in free_ports(3 * count + 4) if port not in ports]
        http, grpc = (ports or own[-2:])[:2]
        self.folder = folder
        require_listening(host, (http, grpc))
        places = _places(count) if device == "cuda" else [dict[str, str]()] * count
        self.servers = tuple(
            make(f"server-{at + 1}", (own[3 * at], own[3 * at + 1], own[3 * at + 2]), place)
            for at, place in enumerate(places)
        )
        values = {
            "WORKERS": str(count),
            "HTTP_PORT": str(http),
            "GRPC_PORT": str(grpc),
            "HTTP_SERVERS": _upstream(server.http_url for server in self.servers),
            "GRPC_SERVERS": _upstream(server.grpc_url for server in self.servers),
        }
        template = repo_root() / "env" / "servers" / "nginx.conf"
        self.balancer = Nginx(template, values, folder, host=host, ports=(http, grpc))
        self.pid = os.getpid()  # whose end is theirs
        self.started_s: float | None = None
        self._stopped, self._stopping = threading.Event(), threading.Lock()

    @property
    def http_url(self) -> str:
        """Address of HTTP, without scheme."""
        return self._at(self.balancer.ports[0])

    @property
    def grpc_url(self) -> str:
        """Address of gRPC."""
        return self._at(self.balancer.ports[1])

    @property
    def metrics_url(self) -> str:
        """Address of the first server's metrics: each has its own."""
        return self.servers[0].metrics_url

    def _at(self, port: int) -> str:
        host = reachable(self.balancer.host)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self, timeout_s: float = READY_TIMEOUT_S, on_poll: Callable[[Self], None] | None = None) -> Self:
        """Start all servers at once, then nginx, and return this once all are ready.

        Args:
            timeout_s: Seconds each may take.
            on_poll: Called now and then while waiting, to show progress.

        Raises:
            ServerError: One did not start; the others have been stopped.
        """
        begin = time.monotonic()
        with ThreadPoolExecutor(len(self.servers)) as pool:
            try:
                pending = {pool.submit(server.start, timeout_s) for server in self.servers}
                while pending:
                    done, pending = wait(pending, WATCH_S, FIRST_EXCEPTION)
                    for one in done:
                        one.result()
                    if on_poll:
                        on_poll(self)
                self.balancer.start()
            except BaseException:
                self.stop()
                raise
        self.started_s = time.monotonic() - begin
        return self

    def keep(self, tell: Callable[[str], None], timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start again what ends, until `stop` is called; then nothing is left.

        Args:
            tell: Gets a line when one ends, and when it is back.
            timeout_s: Seconds a server may take to start.

        Raises:
            ServerError: None of the servers could be started again, or nginx could not.
        """
        with ThreadPoolExecutor(len(self.servers)) as pool:
            keepers = [pool.submit(self._keep_one, server, tell, timeout_s) for server in self.servers]
            try:
                while not self._stopped.wait(WATCH_S):
                    if all(one.done() for one in keepers):
                        keepers[0].result()
                    if not self.balancer.running and not self._stopped.is_set():
                        tell("nginx ended, starting it again.")
                        self.balancer.start()
            finally:
                self._end(keepers)

    def _keep_one(self, server: TritonServer, tell: Callable[[str], None], timeout_s: float) -> None:
        while not self._stopped.wait(WATCH_S):
            if server.serves or self._stopped.is_set():
                continue
            try:
                server.start_again(timeout_s, tell)
            except ServerError as error:
                if not self._stopped.is_set():
                    tell(f"The server at {server.http_url} is left out: {error.found}. Its log: {server.log_path}")
                raise

    def _end(self, keepers: list[Future[None]]) -> None:
        """Stop, until no server is being started any more."""
        self.stop()
        while wait(keepers, WATCH_S).not_done:
            self.stop()
        self.stop()

    def stop(self) -> None:
        """Stop all; doing so again does nothing."""
        self._stopped.set()
        with self._stopping, ThreadPoolExecutor(len(self.servers)) as pool:
            self.balancer.stop()  # first: its idle connections would keep the servers from ending
            list(pool.map(TritonServer.stop, self.servers))


def _upstream(urls: Iterable[str]) -> str:
    return " ".join(f"server {url} max_fails=1 fail_timeout=1s;" for url in urls)


def _places(count: int) -> list[dict[str, str]]:
    """Return the variables that give each server a GPU of its own."""
    gpus = require_gpus(count, f"give each of {count} servers a GPU of its own")
    return [{VISIBLE_VARIABLE: gpu.device} for gpu in gpus]
