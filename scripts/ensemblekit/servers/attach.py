# SPDX-License-Identifier: Apache-2.0
"""Provider `attach`: a running server that the kit did not start and never stops."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import BaseModel

from ensemblekit.clients.bounded import Asker
from ensemblekit.errors import ParameterError, RequestError, ServerNotReady

__all__ = ["URL_VARIABLE", "AttachedServer", "ServerAbout"]

URL_VARIABLE = "ENSEMBLEKIT_URL"  # a server for all pages that take a URL, see `scripts/lab --url`
ASK_TIMEOUT_S = 2.0
OK = 200
POLL_S = 0.2
LEAST_LOOK_S = 1.0  # a look that is cut short says less than the one before it


class ServerAbout(BaseModel):
    """What a server says of itself at `/v2`."""

    version: str = "of no version"
    extensions: list[str]


@dataclass
class AttachedServer:
    """A server at a URL; has the addresses of a `TritonServer` and the same `with` form, but owns no process.

    Attributes:
        http_url: `host:port` of the HTTP endpoint.
        grpc_url: `host:port` of the gRPC endpoint.
        metrics_url: `host:port` of the metrics endpoint.
    """

    http_url: str
    grpc_url: str
    metrics_url: str
    log_path: Path = Path("/dev/null")
    key: str = field(default="", repr=False)

    @property
    def key_headers(self) -> dict[str, str]:
        """What every request must carry: a seat's key, where a workshop's server is behind a gate."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def control_headers(self) -> dict[str, str]:
        """What a request about models must carry: the kit knows no key for loading them on this server."""
        return self.key_headers

    @classmethod
    def at(cls, url: str) -> Self:
        """Return the server at `host:port`, HTTP's; gRPC and metrics are the next two ports, as in Triton's defaults.

        Where they are not, as behind a proxy, their addresses follow behind commas: HTTP, gRPC, metrics. The key of a
        workshop's seat stands before them: `KEY@host:port`.

        Raises:
            ParameterError: The text is not of that form.

        >>> AttachedServer.at("http://10.0.0.7:8000").grpc_url
        '10.0.0.7:8001'
        >>> AttachedServer.at("KEY@10.0.0.7:8000").key_headers
        {'authorization': 'Bearer KEY'}
        >>> AttachedServer.at("http://10.0.0.7:80,grpc://10.0.0.8:443").grpc_url
        '10.0.0.8:443'
        """
        key, _, addresses = url.removeprefix("http://").rpartition("@")
        given = [_host_and_port(part.strip(), addresses) for part in addresses.split(",")]
        host, port = given[0]
        given += [(host, port + step) for step in range(len(given), 3)]
        http, grpc, metrics = (f"{host}:{port}" for host, port in given[:3])
        return cls(http, grpc, metrics, key=key)

    def start(self, timeout_s: float = ASK_TIMEOUT_S) -> Self:
        """Return this server once it says it is ready.

        Raises:
            ServerNotReady: Nothing that says it is ready answers there within `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while found := self._state(max(LEAST_LOOK_S, deadline - time.monotonic())):
            if time.monotonic() + POLL_S > deadline:
                raise ServerNotReady(
                    f"attach to the server at {self.http_url} within {timeout_s:.1f} s",
                    found=found,
                    hint=f"ask it by hand: `curl -i http://{self.http_url}/v2/health/ready`",
                )
            time.sleep(POLL_S)
        return self

    def _state(self, left_s: float) -> str:
        """Return what is wrong with it, empty if nothing is."""
        asker = Asker(self.http_url, left_s, self.key_headers)
        try:
            ready = asker.ask("/v2/health/ready")
            about = asker.ask("/v2")
        except RequestError as error:
            return error.found
        if ready.status != OK:
            return f"HTTP {ready.status} from /v2/health/ready"
        try:
            about.read(ServerAbout)
        except RequestError:  # the metrics endpoint answers 200 to any path
            return "an answer, but not that of a server's HTTP endpoint"
        return ""

    def stop(self) -> None:
        """Do nothing: the server belongs to somebody else."""

    def __enter__(self) -> Self:
        """Check that it answers, for use in a `with` statement."""
        return self.start()

    def __exit__(self, *_error: object) -> None:
        """Leave it as it is."""


def _host_and_port(text: str, url: str) -> tuple[str, int]:
    for scheme in ("http://", "grpc://"):
        text = text.removeprefix(scheme)
    host, _, port = text.rstrip("/").rpartition(":")
    if not host or "/" in host or not port.isdigit() or url.count(",") > 2:
        raise ParameterError(
            f"attach to the server at {url!r}",
            found="not of the form host:port",
            hint="give the HTTP endpoint of a running tritonserver, for example URL = '127.0.0.1:8000', "
            "and gRPC's behind a comma where it is not the next port: '127.0.0.1:8000,127.0.0.1:9001'",
        )
    return host, int(port)
