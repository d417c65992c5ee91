# SPDX-License-Identifier: Apache-2.0
"""Triton's own sentences that others must say or know word for word: lint predicts them, a probe waits for them."""

import re

__all__ = [
    "BAD_DIMENSION",
    "BAD_RESHAPE",
    "BATCHES_OF_VLLM",
    "CACHE",
    "CORRELATION_TYPE",
    "DECOUPLED_OF_VLLM",
    "EMPTY_RESHAPE",
    "ENSEMBLE_PLATFORM",
    "ENSEMBLE_REFUSED",
    "GENUINE_REFUSAL",
    "NEGATIVE_BATCH",
    "NO_CANONICAL_PATH",
    "NO_STEP",
    "NO_TEXT_FILE",
    "PLATFORM_AND_BACKEND",
    "PORT_TAKEN",
    "PRIORITY",
    "REQUEST_FAILED",
    "UNKNOWN_OPTION",
    "WARMUP_OF_ENSEMBLE",
]

ENSEMBLE_PLATFORM = "unexpected platform type 'ensemble'"  # of a server that was built without ensembles
# model_repository_manager.cc:1460 in 2.49.0; tests compare it with a genuine log
ENSEMBLE_REFUSED = f"Poll failed for model directory 'ensemble': {ENSEMBLE_PLATFORM} for ensemble"
# Where the emulation's words are not a genuine build's: scheduling beside a backend (see servers/emulation.py).
GENUINE_REFUSAL = "ensemble scheduling not supported"
NO_TEXT_FILE = "failed to open text file for read {file}: No such file or directory"
NO_CANONICAL_PATH = "Failed to get the canonical path for {path}."
REQUEST_FAILED = "Failed to process the request"
PORT_TAKEN = "already in use"  # of an endpoint that cannot be opened
UNKNOWN_OPTION = re.compile(r"unrecognized option '([^']+)'")
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
