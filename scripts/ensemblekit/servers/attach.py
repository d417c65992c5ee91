# SPDX-License-Identifier: Apache-2.0
"""Provider `attach`: a running server that the kit did not start and never stops."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from ensemblekit.errors import ParameterError, ServerNotReady

__all__ = ["URL_VARIABLE", "AttachedServer"]

URL_VARIABLE = "ENSEMBLEKIT_URL"  # a server for all pages that take a URL, see `scripts/lab --url`
ASK_TIMEOUT_S = 2.0
POLL_S = 0.2


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
        while True:
            found = self._state()
            if found is None:
                return self
            if time.monotonic() > deadline:
                raise ServerNotReady(
                    f"attach to the server at {self.http_url} within {timeout_s:.0f} s",
                    found=found,
                    hint=f"ask it by hand: `curl -i http://{self.http_url}/v2/health/ready`",
                )
            time.sleep(POLL_S)

    def _state(self) -> str | None:
        try:
            ready, about = (self._get(path) for path in ("/v2/health/ready", "/v2"))
        except httpx.TransportError as error:
            return f"{type(error).__name__}: {error}"
        if ready.status_code != httpx.codes.OK:
            return f"HTTP {ready.status_code} from /v2/health/ready"
        # the metrics endpoint answers 200 to any path
        return None if '"extensions"' in about.text else "an answer, but not that of a server's HTTP endpoint"

    def _get(self, path: str) -> httpx.Response:
        return httpx.get(
            f"http://{self.http_url}{path}", timeout=ASK_TIMEOUT_S, headers=self.key_headers, trust_env=False
        )

    def stop(self) -> None:
        """Do nothing: the server belongs to somebody else."""

    def __enter__(self) -> Self:
        """Check that it answers, for use in a `with` statement."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
