# SPDX-License-Identifier: Apache-2.0
"""The tensors every model of this backend has, as in vllm_backend r24.08."""

from typing import Any

INPUTS = (
    {"name": "text_input", "data_type": "TYPE_STRING", "dims": [1]},
    {"name": "stream", "data_type": "TYPE_BOOL", "dims": [1], "optional": True},
    {"name": "sampling_parameters", "data_type": "TYPE_STRING", "dims": [1], "optional": True},
    {"name": "exclude_input_in_output", "data_type": "TYPE_BOOL", "dims": [1], "optional": True},
)
OUTPUTS = ({"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]},)
METRICS_PARAMETER = "REPORT_CUSTOM_METRICS"
DELAY_PARAMETER = "MAX_ADMISSION_DELAY_MS"
USUAL_DELAY_MS = 100.0
YES = ("yes", "true")  # r24.08 says "yes", later backends "true"


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
    parameter = config.get("parameters", {}).get(METRICS_PARAMETER, {})
    return parameter.get("string_value", "").lower() in YES


def longest_wait_s(config: dict[str, Any]) -> float:
    """Return how long a new request may wait for others: parameter MAX_ADMISSION_DELAY_MS, 100 if it is not given.

    Raises:
        ValueError: It is not a number, or less than 0.
    """
    given = config.get("parameters", {}).get(DELAY_PARAMETER, {}).get("string_value", "")
    try:
        delay_ms = float(given) if given else USUAL_DELAY_MS
    except ValueError:
        delay_ms = -1.0
    if not 0 <= delay_ms < float("inf"):
        raise ValueError(f"parameter {DELAY_PARAMETER} must be milliseconds, 0 or more, not {given!r}")
    return delay_ms / 1000
