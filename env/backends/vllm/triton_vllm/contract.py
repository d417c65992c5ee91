# SPDX-License-Identifier: Apache-2.0
"""The tensors and parameters of every model of this backend: vllm_backend r24.08, and what r24.12 added."""

from typing import Any

ADDITIONAL = {
    "finish_reason": {"data_type": "TYPE_STRING", "dims": [-1]},
    "cumulative_logprob": {"data_type": "TYPE_FP32", "dims": [-1]},
    "logprobs": {"data_type": "TYPE_STRING", "dims": [-1]},
    "num_input_tokens": {"data_type": "TYPE_UINT32", "dims": [1]},
    "num_output_tokens": {"data_type": "TYPE_UINT32", "dims": [-1]},
}
SWITCH = "return_"  # an input of this name and the output's asks for an additional output
INPUTS = (
    {"name": "text_input", "data_type": "TYPE_STRING", "dims": [1]},
    {"name": "stream", "data_type": "TYPE_BOOL", "dims": [1], "optional": True},
    {"name": "sampling_parameters", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
    {"name": "exclude_input_in_output", "data_type": "TYPE_BOOL", "dims": [1], "optional": True},
    *({"name": SWITCH + name, "data_type": "TYPE_BOOL", "dims": [1], "optional": True} for name in ADDITIONAL),
)
OUTPUTS = (
    {"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]},
    *({"name": name, **tensor} for name, tensor in ADDITIONAL.items()),
)
METRICS_PARAMETER = "REPORT_CUSTOM_METRICS"
HEALTH_PARAMETER = "ENABLE_VLLM_HEALTH_CHECK"
FAST_PATH_PARAMETER = "FAST_PATH"
DELAY_PARAMETER = "MAX_ADMISSION_DELAY_MS"
USUAL_DELAY_MS = 100.0
YES, NO = ("yes", "true"), ("no", "false")  # r24.08 says "yes", later backends "true"


def complete(config: Any) -> Any:
    """Add what is missing to Triton's `ModelConfig` object and return it.

    What config.pbtxt already says about a tensor is left as it is.
    """
    given = config.as_dict()
    for tensor in INPUTS:
        if tensor["name"] not in {entry["name"] for entry in given["input"]}:
            config.add_input(tensor)
    for tensor in OUTPUTS:
        if tensor["name"] not in {entry["name"] for entry in given["output"]}:
            config.add_output(tensor)
    config.set_model_transaction_policy({"decoupled": True})
    config.set_max_batch_size(0)  # vLLM batches by itself, token by token
    return config


def reports_metrics(config: dict[str, Any]) -> bool:
    """Return whether config.pbtxt asks for vLLM's metrics: parameter REPORT_CUSTOM_METRICS "yes"."""
    return _parameter(config, METRICS_PARAMETER).lower() in YES


def checks_health(config: dict[str, Any]) -> bool:
    """Return whether a dead engine makes the model not ready: parameter ENABLE_VLLM_HEALTH_CHECK "true"."""
    return _parameter(config, HEALTH_PARAMETER).lower() in YES


def wants_fast_path(config: dict[str, Any]) -> bool:
    """Return whether answers may go past vLLM's output processor: always, but for parameter FAST_PATH "no".

    Raises:
        ValueError: It is neither yes nor no.
    """
    given = _parameter(config, FAST_PATH_PARAMETER)
    if given and given.lower() not in YES + NO:
        raise ValueError(f'parameter {FAST_PATH_PARAMETER} must be "yes" or "no", not {given!r}')
    return given.lower() not in NO


def longest_wait_s(config: dict[str, Any]) -> float:
    """Return how long a new request may wait for others: parameter MAX_ADMISSION_DELAY_MS, 100 if it is not given.

    Raises:
        ValueError: It is not a number, or less than 0.
    """
    given = _parameter(config, DELAY_PARAMETER)
    try:
        delay_ms = float(given) if given else USUAL_DELAY_MS
    except ValueError:
        delay_ms = -1.0
    if not 0 <= delay_ms < float("inf"):
        raise ValueError(f"parameter {DELAY_PARAMETER} must be milliseconds, 0 or more, not {given!r}")
    return delay_ms / 1000


def _parameter(config: dict[str, Any], name: str) -> str:
    return str(config.get("parameters", {}).get(name, {}).get("string_value", ""))
