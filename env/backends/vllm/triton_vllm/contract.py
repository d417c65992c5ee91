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
