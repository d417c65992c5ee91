# SPDX-License-Identifier: Apache-2.0
"""Where upstream documents what the faults are about, at release 24.08."""

__all__ = [
    "BATCHING",
    "CONFIGURATION",
    "CORE_CHECKS",
    "DECOUPLED",
    "ENSEMBLES",
    "ENSEMBLE_CHECKS",
    "FLAG_FIX",
    "GENERATE",
    "PYTHON_BACKEND",
    "REPORT",
    "REPOSITORY",
    "SERVER_OPTIONS",
    "VERSION_POLICY",
    "VLLM_BACKEND",
]

_SERVER = "https://github.com/triton-inference-server/server/blob/r24.08/docs"
_CORE = "https://github.com/triton-inference-server/core/blob/r24.08/src"
REPORT = "https://github.com/triton-inference-server/server/issues/7632"
FLAG_FIX = "https://github.com/triton-inference-server/vllm_backend/pull/68"
ENSEMBLES = f"{_SERVER}/user_guide/architecture.md#ensemble-models"
CONFIGURATION = f"{_SERVER}/user_guide/model_configuration.md"
BATCHING = f"{_SERVER}/user_guide/model_configuration.md#maximum-batch-size"
VERSION_POLICY = f"{_SERVER}/user_guide/model_configuration.md#version-policy"
REPOSITORY = f"{_SERVER}/user_guide/model_repository.md#repository-layout"
DECOUPLED = f"{_SERVER}/user_guide/decoupled_models.md"
GENERATE = f"{_SERVER}/protocol/extension_generate.md"
SERVER_OPTIONS = f"{_SERVER}/user_guide/model_management.md"
CORE_CHECKS = f"{_CORE}/model_config_utils.cc"
ENSEMBLE_CHECKS = f"{_CORE}/ensemble_scheduler/ensemble_utils.cc"
PYTHON_BACKEND = "https://github.com/triton-inference-server/python_backend/blob/r24.08/README.md"
VLLM_BACKEND = "https://github.com/triton-inference-server/vllm_backend/blob/r24.08/README.md"
