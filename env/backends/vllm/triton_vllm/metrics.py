# SPDX-License-Identifier: Apache-2.0
"""vLLM's metrics on Triton's metrics endpoint, under the names that NVIDIA's backend uses."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import triton_python_backend_utils as pb_utils
from vllm.v1.metrics.loggers import StatLoggerBase

SECONDS = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
TOKEN_SECONDS = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
REQUEST_SECONDS = [0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0]
TOKENS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0]

GAUGES = {
    "vllm:num_requests_running": "Number of requests currently running in the engine.",
    "vllm:num_requests_waiting": "Number of requests waiting to be scheduled.",
    "vllm:gpu_cache_usage_perc": "KV cache usage of the device. 1 means 100 percent.",
}
COUNTERS = {
    "vllm:prompt_tokens_total": "Number of prefill tokens processed.",
    "vllm:generation_tokens_total": "Number of generation tokens processed.",
    "vllm:num_preemptions_total": "Number of preempted requests.",
}
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": ("Time to first token in seconds.", SECONDS),
    "vllm:time_per_output_token_seconds": ("Mean time per output token of each request.", TOKEN_SECONDS),
    "vllm:e2e_request_latency_seconds": ("End to end request latency in seconds.", REQUEST_SECONDS),
    "vllm:request_prompt_tokens": ("Prefill tokens of each finished request.", TOKENS),
    "vllm:request_params_n": ("The n of each request.", [1.0, 2.0, 5.0, 10.0, 20.0]),
    "vllm:request_generation_tokens": ("Generation tokens of each finished request.", TOKENS),
}

Update = tuple[str, float | list[float]]


class TritonMetrics:
    """Triton's metric objects by name. Each update is a message to the server, so a thread sends them."""

    def __init__(self, labels: dict[str, str]) -> None:
        """Register the metrics.

        Raises:
            TritonModelException: The server was started without metrics.
        """
        kinds = pb_utils.MetricFamily
        self._families: list[Any] = []  # a family must outlive its metrics
        self._gauges = {name: self._new(name, text, kinds.GAUGE, labels) for name, text in GAUGES.items()}
        self._counters = {name: self._new(name, text, kinds.COUNTER, labels) for name, text in COUNTERS.items()}
        self._histograms = {}
        if hasattr(kinds, "HISTOGRAM"):  # Triton 24.07's stub has none
            self._histograms = {
                name: self._new(name, text, kinds.HISTOGRAM, labels, buckets=buckets)
                for name, (text, buckets) in HISTOGRAMS.items()
            }
        self._queue: queue.SimpleQueue[list[Update]] = queue.SimpleQueue()
        threading.Thread(target=self._send_all, name="metrics", daemon=True).start()

    def report(self, updates: list[Update]) -> None:
        """Queue updates: a gauge's value, a counter's increment, a histogram's observations."""
        self._queue.put(updates)

    def _new(self, name: str, text: str, kind: Any, labels: dict[str, str], **more: Any) -> Any:
        family = pb_utils.MetricFamily(name=name, description=text, kind=kind)
        self._families.append(family)
        return family.Metric(labels=labels, **more)

    def _send_all(self) -> None:
        while True:
            for name, value in self._drain().items():
                if name in self._gauges:
                    self._gauges[name].set(value)
                elif name in self._counters:
                    self._counters[name].increment(value)
                elif name in self._histograms:
                    for observation in value:
                        self._histograms[name].observe(observation)

    def _drain(self) -> dict[str, Any]:
        """Wait for updates and merge all that are queued, so that a backlog costs few messages."""
        merged: dict[str, Any] = {}
        batches = [self._queue.get()]
        while not self._queue.empty():
            batches.append(self._queue.get())
        for name, value in (update for batch in batches for update in batch):
            if name in self._gauges or name not in merged:
                merged[name] = value
            else:
                merged[name] = merged[name] + value
        return {name: value for name, value in merged.items() if name in self._gauges or value}


def stat_logger_factory(labels: dict[str, str]) -> Callable[..., StatLoggerBase]:
    """Return what vLLM calls to make its logger for an engine."""
    metrics = TritonMetrics(labels)
    return lambda vllm_config, engine_index=0: TritonStatLogger(metrics)


class TritonStatLogger(StatLoggerBase):
    """Translates vLLM's statistics of an engine step into updates of Triton's metrics."""

    def __init__(self, metrics: TritonMetrics, engine_index: int = 0) -> None:
        """Report to these metrics."""
        self._metrics = metrics

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **more: Any) -> None:
        """Queue the numbers of one step; called on the engine's loop."""
        updates: list[Update] = []
        if scheduler_stats is not None:
            updates += [
                ("vllm:num_requests_running", float(scheduler_stats.num_running_reqs)),
                ("vllm:num_requests_waiting", float(scheduler_stats.num_waiting_reqs)),
                ("vllm:gpu_cache_usage_perc", float(scheduler_stats.kv_cache_usage)),
            ]
        if iteration_stats is not None:
            updates += _of_iteration(iteration_stats)
        self._metrics.report(updates)

    def log_engine_initialized(self) -> None:
        """Do nothing: the backend itself says when the engine is ready."""


def _of_iteration(stats: Any) -> list[Update]:
    finished = stats.finished_requests
    return [
        ("vllm:prompt_tokens_total", float(stats.num_prompt_tokens)),
        ("vllm:generation_tokens_total", float(stats.num_generation_tokens)),
        ("vllm:num_preemptions_total", float(stats.num_preempted_reqs)),
        ("vllm:time_to_first_token_seconds", list(stats.time_to_first_tokens_iter)),
        # once a request: each observation is a message to the server, and one a token would be 20000 a second
        ("vllm:time_per_output_token_seconds", [request.mean_time_per_output_token for request in finished]),
        ("vllm:e2e_request_latency_seconds", [request.e2e_latency for request in finished]),
        ("vllm:request_params_n", [float(n) for n in stats.n_params_iter]),
        ("vllm:request_prompt_tokens", [float(request.num_prompt_tokens) for request in finished]),
        ("vllm:request_generation_tokens", [float(request.num_generation_tokens) for request in finished]),
    ]
