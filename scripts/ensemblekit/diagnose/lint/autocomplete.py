# SPDX-License-Identifier: Apache-2.0
"""A model's config as the server will see it: what Triton and the backends add to what is written."""

from dataclasses import dataclass

from tritonclient.grpc import model_config_pb2

from ensemblekit.diagnose.lint.declared_tensors import own_tensors
from ensemblekit.repository.read import ModelFolder

__all__ = ["VLLM_INPUTS", "VLLM_OUTPUTS", "Model", "complete"]

# vllm_backend r24.08: name, type, dims, optional
VLLM_INPUTS = (
    ("text_input", model_config_pb2.TYPE_STRING, 1, False),
    ("stream", model_config_pb2.TYPE_BOOL, 1, True),
    ("sampling_parameters", model_config_pb2.TYPE_STRING, 1, True),
    ("exclude_input_in_output", model_config_pb2.TYPE_BOOL, 1, True),
)
VLLM_OUTPUTS = (("text_output", model_config_pb2.TYPE_STRING, -1),)
# Triton's own guesses, in its order: backend, platform, default file name
_GUESSES = (
    ("tensorflow", "tensorflow_savedmodel", "model.savedmodel"),
    ("tensorflow", "tensorflow_graphdef", "model.graphdef"),
    ("tensorrt", "tensorrt_plan", "model.plan"),
    ("onnxruntime", "onnxruntime_onnx", "model.onnx"),
    ("openvino", "", "model.xml"),
    ("pytorch", "pytorch_libtorch", "model.pt"),
    ("python", "", "model.py"),
)
_FIRST_PLATFORM = {"tensorrt": "tensorrt_plan", "onnxruntime": "onnxruntime_onnx", "pytorch": "pytorch_libtorch"}


@dataclass(frozen=True)
class Model:
    """A model as the server will see it.

    Attributes:
        folder: Its folder, with the config as it is written.
        config: The config, completed.
        complete: Whether all its tensors are known; False if a backend adds them when it loads the model.
        guessed: Whether a backend is known; False if Triton would find none.
    """

    folder: ModelFolder
    config: model_config_pb2.ModelConfig
    complete: bool
    guessed: bool

    @property
    def name(self) -> str:
        """The model's name."""
        return self.folder.name

    @property
    def ensemble(self) -> bool:
        """Whether it is an ensemble."""
        return bool(self.config.platform == "ensemble")

    @property
    def vllm(self) -> bool:
        """Whether the vLLM backend runs it, or a model with the same tensors that stands in for one."""
        return bool(self.config.backend == "vllm") or self.stands_in

    @property
    def stands_in(self) -> bool:
        """Whether it is a Python model with the tensors of a vLLM model."""
        names = {tensor.name for tensor in self.config.input}
        return bool(self.config.model_transaction_policy.decoupled) and {"text_input", "sampling_parameters"} <= names


def complete(folder: ModelFolder) -> Model:
    """Return the model with what the server and its backend will add.

    Args:
        folder: A folder whose config, if there is one, could be parsed.
    """
    config = model_config_pb2.ModelConfig()
    if folder.config is not None:
        config.CopyFrom(folder.config)
    config.name = config.name or folder.name
    guessed = _guess_backend(folder, config)
    whole = bool(config.platform == "ensemble")
    if config.backend == "vllm":
        _add_vllm_tensors(config)
        whole = True
    elif config.backend == "python":
        whole = _add_own_tensors(folder, config)
    elif config.input and config.output:
        whole = True
    return Model(folder, config, whole, guessed)


def _guess_backend(folder: ModelFolder, config: model_config_pb2.ModelConfig) -> bool:
    """Set backend, platform and file as Triton's poll does; return whether it finds any."""
    first = folder.files(folder.subfolders[0]) if folder.subfolders else frozenset()
    for backend, platform, file in _GUESSES:
        bare = not config.platform and not config.backend
        named = config.default_model_filename
        by_platform = bool(platform) and config.platform == platform
        by_file = bare and (named == file or (not named and file in first))
        if not config.backend and (by_platform or by_file):
            config.backend = backend
            config.platform = config.platform or platform
            config.default_model_filename = named or file
    if config.backend in _FIRST_PLATFORM and not config.platform:
        config.platform = _FIRST_PLATFORM[config.backend]
    if config.backend == "python":
        config.default_model_filename = config.default_model_filename or "model.py"
    if config.backend or config.platform or config.default_model_filename:
        return True
    if "." in folder.name:  # `name.backend` names its backend
        config.backend = folder.name.split(".", 1)[1]
        return True
    return False


def _add_vllm_tensors(config: model_config_pb2.ModelConfig) -> None:
    inputs, outputs = {t.name for t in config.input}, {t.name for t in config.output}
    for name, kind, dims, optional in VLLM_INPUTS:
        if name not in inputs:
            config.input.add(name=name, data_type=kind, dims=[dims], optional=optional)
    for name, kind, dims in VLLM_OUTPUTS:
        if name not in outputs:
            config.output.add(name=name, data_type=kind, dims=[dims])
    config.model_transaction_policy.decoupled = True


def _add_own_tensors(folder: ModelFolder, config: model_config_pb2.ModelConfig) -> bool:
    """Add what a Python model adds itself, and return whether that is known in full."""
    if not folder.versions:
        return True
    file = folder.inside(str(folder.versions[-1]), config.default_model_filename)
    if file is None:
        return False
    own = own_tensors(file)
    kinds = model_config_pb2.DataType
    for tensors, added in ((config.input, own.inputs), (config.output, own.outputs)):
        names = {tensor.name for tensor in tensors}
        for entry in added:
            if entry["name"] not in names and entry["data_type"] in kinds.keys():  # noqa: SIM118 - no mapping
                tensor = tensors.add(name=entry["name"], data_type=kinds.Value(entry["data_type"]), dims=entry["dims"])
                if entry.get("optional"):
                    tensor.optional = True
    config.max_batch_size = config.max_batch_size or own.max_batch_size or 0
    return own.whole
