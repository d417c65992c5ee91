# SPDX-License-Identifier: Apache-2.0
"""Triton's own statistics: where the time of a request goes."""

from collections.abc import Mapping
from dataclasses import dataclass

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from ensemblekit.clients.grpc import Served, key_headers
from ensemblekit.errors import RequestError

__all__ = ["ModelStatistics", "model_statistics", "time_by_step"]

NANOSECONDS = 1e9


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
