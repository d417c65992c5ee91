# SPDX-License-Identifier: Apache-2.0
"""Triton's own statistics and metrics: where the time of a request goes."""

from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from ensemblekit.clients.grpc import Served, key_headers
from ensemblekit.errors import RequestError

__all__ = ["ModelStatistics", "metric_value", "model_statistics", "time_by_step"]

NANOSECONDS = 1e9
METRICS_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ModelStatistics:
    """Sums over the successful requests to one model.

    A decoupled model hands its requests over and answers later: its `total_s` ends with the handing over. Only the
    ensemble's holds the time until the last response.

    Attributes:
        requests: Requests that succeeded.
        total_s: From the server's receiving a request to its release, queue included, in seconds.
    """

    requests: int
    total_s: float


def model_statistics(server: Served) -> dict[str, ModelStatistics]:
    """Return the statistics of each loaded model since it was loaded, by name.

    Raises:
        RequestError: The server does not answer.
    """
    try:
        with InferenceServerClient(server.grpc_url) as client:
            rows = client.get_inference_statistics(headers=key_headers(server)).model_stats
    except InferenceServerException as error:
        raise RequestError(
            f"read the statistics of the server at {server.grpc_url}",
            found=error.message(),
            hint="start a server first; if one ran here, the end of its log says why it ended",
        ) from error
    return {
        row.name: ModelStatistics(
            requests=row.inference_stats.success.count, total_s=row.inference_stats.success.ns / NANOSECONDS
        )
        for row in sorted(rows, key=lambda row: str(row.name))
    }


def time_by_step(
    before: Mapping[str, ModelStatistics], after: Mapping[str, ModelStatistics], ensemble: str = "ensemble"
) -> dict[str, float]:
    """Return where the time of the ensemble's requests between two readings went: mean seconds, by step.

    The last entry is the rest: what no composing model's statistics hold. With a decoupled composing model
    that is the time in which it generated, and the passing of tensors; never below zero: a stand-in that
    generates nothing would come out there, because its step is still counted after the last response.

    Args:
        before: Statistics before the requests.
        after: Statistics after them; nobody else may ask the server meanwhile.
        ensemble: The ensemble's name.

    Raises:
        ValueError: There was no request to the ensemble between the two.
    """
    requests = after[ensemble].requests - before[ensemble].requests
    if requests < 1:
        raise ValueError(f"no request to {ensemble} between the two readings")
    mean = {name: (row.total_s - before[name].total_s) / requests for name, row in after.items()}
    whole = mean.pop(ensemble)
    return mean | {"generating": max(0.0, whole - sum(mean.values()))}


def metric_value(server: Served, name: str) -> float | None:
    """Return the sum of a Prometheus metric over its labels, None if the server has no such metric.

    Raises:
        RequestError: The metrics endpoint does not answer.
    """
    url = f"http://{server.metrics_url}/metrics"
    try:
        text = httpx.get(url, timeout=METRICS_TIMEOUT_S, trust_env=False).text
    except httpx.TransportError as error:
        raise RequestError(
            f"read {url}",
            found=f"{type(error).__name__}: {error}",
            hint="was the server started with metrics on?",
        ) from error
    values = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if _names(line, name)]
    return sum(values) if values else None


def _names(line: str, name: str) -> bool:
    return line.startswith((f"{name}{{", f"{name} "))
