# SPDX-License-Identifier: Apache-2.0
"""What Triton says where one entry of the catalogue stands for many refusals: the reasons of some.

lint predicts them word for word; the patterns of those entries find them in a log.
"""

__all__ = [
    "BAD_DIMENSION",
    "BAD_RESHAPE",
    "BATCHES_OF_VLLM",
    "CACHE",
    "CORRELATION_TYPE",
    "DECOUPLED_OF_VLLM",
    "EMPTY_RESHAPE",
    "NEGATIVE_BATCH",
    "NO_STEP",
    "PLATFORM_AND_BACKEND",
    "PRIORITY",
    "WARMUP_OF_ENSEMBLE",
]

BAD_DIMENSION = "dimension must be integer >= 1, or -1 to indicate a variable-size dimension"
BAD_RESHAPE = "reshape dimensions must be integer >= 1, or -1 to indicate a variable-size dimension"
EMPTY_RESHAPE = "cannot have empty reshape for non-batching model as scalar tensors are not supported"
BATCHES_OF_VLLM = (
    "configuration specified max_batch_size {size}, but in auto-complete-config function for model '{model}' specified "
    "max_batch_size 0"
)
DECOUPLED_OF_VLLM = (
    "trying to change decoupled property in auto-complete-config for model '{model}', which is already set to 'False'."
)
PRIORITY = "default priority level must be in range [1, {levels}] for {model}"
CACHE = "Response Cache does not currently support model {model} {cause}. Please disable the response cache."
WARMUP_OF_ENSEMBLE = "model_warmup can not be specified for ensemble '{model}'"
NO_STEP = "must specify 'step' for ensemble '{model}'"
CORRELATION_TYPE = "unexpected data type for control {kind} for {model}. Allowed data types are {types}"
NEGATIVE_BATCH = "'max_batch_size' must be non-negative value for {model}"
PLATFORM_AND_BACKEND = "unexpected 'platform' and 'backend' pair, got:{platform}, {backend}"
