# SPDX-License-Identifier: Apache-2.0
"""Where upstream documents what the faults are about, at release 24.08."""

__all__ = [
    "BATCHING",
    "CONFIGURATION",
    "CORE_CHECKS",
    "DALI_BACKEND",
    "DECOUPLED",
    "ENSEMBLES",
    "ENSEMBLE_CHECKS",
    "FLAG_FIX",
    "GENERATE",
    "IMAGES",
    "ISSUES",
    "ONNX_BACKEND",
    "PODMAN",
    "PYTHON_BACKEND",
    "PYTORCH_BACKEND",
    "REPORT",
    "REPOSITORY",
    "SERVER_OPTIONS",
    "STORES",
    "SUPPORT",
    "TENSORRT_BACKEND",
    "TOOLKIT",
    "TRTLLM_BACKEND",
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
_GITHUB = "https://github.com/triton-inference-server"
STORES = f"{_SERVER}/user_guide/model_repository.md#cloud-storage-with-credential-as-environment-variables"
SUPPORT = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html"
IMAGES = "https://catalog.ngc.nvidia.com/orgs/nvidia/containers/tritonserver"
PODMAN = "https://github.com/containers/podman/blob/main/troubleshooting.md"
TOOLKIT = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"
ISSUES = f"{_GITHUB}/server/issues"
ONNX_BACKEND = f"{_GITHUB}/onnxruntime_backend/blob/r24.08/README.md"
PYTORCH_BACKEND = f"{_GITHUB}/pytorch_backend/blob/r24.08/README.md"
TENSORRT_BACKEND = f"{_GITHUB}/tensorrt_backend/blob/r24.08/README.md"
DALI_BACKEND = f"{_GITHUB}/dali_backend/blob/r24.08/README.md"
TRTLLM_BACKEND = f"{_GITHUB}/tensorrtllm_backend/blob/main/README.md"
PYTHON_BACKEND = "https://github.com/triton-inference-server/python_backend/blob/r24.08/README.md"
VLLM_BACKEND = "https://github.com/triton-inference-server/vllm_backend/blob/r24.08/README.md"
