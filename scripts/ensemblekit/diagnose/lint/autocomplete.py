# SPDX-License-Identifier: Apache-2.0
"""A model's config as the server will see it: what Triton, its backends and a Python model add to what is written.

A Python model's `auto_complete_config` is read from its code without running it. Only what is written out is
believed: dictionaries of constants, given directly, by name, or in a loop over a list of them, and under no condition.
Of anything else lint says nothing, rather than something wrong.
"""

import ast
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ensemblekit.diagnose.lint.findings import Finding, make_finding
from ensemblekit.repository.read import ModelFolder, read_bytes
from ensemblekit.repository.textproto import Key, model_config_pb2

__all__ = ["Model", "OwnTensors", "complete", "own_tensors", "parse_code"]

_KINDS = model_config_pb2.DataType
# vllm_backend r24.08: name, type, dims, optional
_VLLM_INPUTS = (
    ("text_input", model_config_pb2.TYPE_STRING, 1, False),
    ("stream", model_config_pb2.TYPE_BOOL, 1, True),
    ("sampling_parameters", model_config_pb2.TYPE_STRING, 1, True),
    ("exclude_input_in_output", model_config_pb2.TYPE_BOOL, 1, True),
)
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
_ADDS = {"add_input": "inputs", "add_output": "outputs"}
LONGEST_CODE = 2**20  # bytes of a model.py: Python's parser needs some thousand times that in memory
MOST_STATEMENTS = 10_000  # of auto_complete_config, loops counted in full


@dataclass(eq=False)
class Model:
    """A model as the server will see it."""

    folder: ModelFolder  # its folder, with the config as it is written
    config: model_config_pb2.ModelConfig  # the config, completed
    complete: bool  # whether all its tensors are known; False if a backend adds them when it loads the model
    guessed: bool  # whether a backend is known; False if Triton would find none
    decoupled: bool  # whether it may answer any number of times; of an ensemble it is known once its steps are

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
        """Whether the vLLM backend runs it, or a Python model with the same tensors that stands in for one."""
        names = {tensor.name for tensor in self.config.input}
        decoupled = bool(self.config.model_transaction_policy.decoupled)
        return self.config.backend == "vllm" or (decoupled and {"text_input", "sampling_parameters"} <= names)

    def finding(self, code: str, at: tuple[Key, ...] = (), **values: Any) -> Finding:
        """Return a finding about it, see `make_finding`."""
        return make_finding(code, self.folder, at, **values)

    @cached_property
    def steps(self) -> tuple[str, ...]:
        """The models of an ensemble's steps; empty for any other model."""
        return tuple(step.model_name for step in self.config.ensemble_scheduling.step)

    @cached_property
    def versions(self) -> tuple[int, ...]:
        """The versions that its version_policy loads: the latest one unless it says otherwise."""
        have, policy = self.folder.versions, self.config.version_policy
        if policy.HasField("specific"):
            wanted = set(policy.specific.versions)
            return tuple(version for version in have if version in wanted)
        if policy.HasField("all"):
            return have
        count = policy.latest.num_versions if policy.HasField("latest") else 1
        return have[-count:] if count > 0 else ()


def complete(folder: ModelFolder) -> Model:
    """Return the model with what the server and its backend will add; its config, if there is one, could be parsed."""
    config = model_config_pb2.ModelConfig()
    if folder.config is not None:
        config.CopyFrom(folder.config)
    config.name = config.name or folder.name
    guessed = _guess_backend(folder, config)
    if config.backend == "vllm":
        _add_vllm_tensors(config)
        whole = True
    elif config.backend == "python":
        whole = _add_own_tensors(folder, config)
    else:
        whole = bool(config.platform == "ensemble" or (config.input and config.output))
    return Model(folder, config, whole, guessed, bool(config.model_transaction_policy.decoupled))


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
    if not (config.backend or config.platform or config.default_model_filename) and "." in folder.name:
        config.backend = folder.name.split(".", 1)[1]  # `name.backend` names its backend
    return bool(config.backend or config.platform or config.default_model_filename)


def _add_vllm_tensors(config: model_config_pb2.ModelConfig) -> None:
    inputs = {tensor.name for tensor in config.input}
    for name, kind, dims, optional in _VLLM_INPUTS:
        if name not in inputs:
            config.input.add(name=name, data_type=kind, dims=[dims], optional=optional)
    if all(tensor.name != "text_output" for tensor in config.output):
        config.output.add(name="text_output", data_type=model_config_pb2.TYPE_STRING, dims=[-1])
    config.model_transaction_policy.decoupled = True


def _add_own_tensors(folder: ModelFolder, config: model_config_pb2.ModelConfig) -> bool:
    """Add what a Python model adds itself, and return whether that is known in full."""
    if not folder.versions:
        return True
    file = folder.inside(str(folder.versions[-1]), config.default_model_filename)
    if file is None:
        return False
    own = own_tensors(file)
    for tensors, added in ((config.input, own.inputs), (config.output, own.outputs)):
        names = {tensor.name for tensor in tensors}
        for entry in added:
            if entry["name"] not in names and entry["data_type"] in _KINDS.keys():  # noqa: SIM118 - no mapping
                tensor = tensors.add(name=entry["name"], data_type=_KINDS.Value(entry["data_type"]), dims=entry["dims"])
                if entry.get("optional"):
                    tensor.optional = True
    config.max_batch_size = config.max_batch_size or own.max_batch_size or 0
    return own.whole


@dataclass
class OwnTensors:
    """What a model adds to its config."""

    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    max_batch_size: int | None = None  # what it sets, None if it leaves that alone
    whole: bool = True  # whether this is all it adds; False if the code does something that is not understood


def parse_code(file: Path) -> ast.Module:
    """Return a Python file's syntax tree.

    Raises:
        OSError: It cannot be read, or is too large to be.
        SyntaxError: It is no Python; a ValueError if it holds a zero byte.
        RecursionError: It is nested too deep; or a MemoryError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Python thinks of its escapes is not asked
        return ast.parse(read_bytes(file, LONGEST_CODE))


def own_tensors(file: Path) -> OwnTensors:
    """Return what the model in this file adds to its config: nothing if it has no such function."""
    try:
        tree = parse_code(file)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return OwnTensors()
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    function = next((node for node in functions if node.name == "auto_complete_config"), None)
    if function is None:
        return OwnTensors()
    reader = _Reader(dict(_assigned(tree.body)) | dict(_assigned(function.body)))
    for node in function.body:
        reader.statement(node, {})
    return reader.own


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, Any]]:
    for node in body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                yield node.targets[0].id, ast.literal_eval(node.value)
            except (ValueError, TypeError, RecursionError, MemoryError):
                continue


class _Reader:
    """Reads one function, statement by statement."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        self._constants = constants
        self._left = MOST_STATEMENTS
        self.own = OwnTensors()

    def statement(self, node: ast.stmt, loop: dict[str, Any]) -> None:
        """Note what one statement adds, with the values of the loops around it."""
        self._left -= 1
        if self._left < 0:
            self.own.whole = False
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self._call(node.value, loop)
        elif isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            values = self._value(node.iter, loop)
            self.own.whole &= isinstance(values, list | tuple)
            for value in values if isinstance(values, list | tuple) else ():
                if self._left < 0:
                    return
                for inner in node.body:
                    self.statement(inner, loop | {node.target.id: value})
        elif not isinstance(node, ast.Return | ast.Assign | ast.Pass | ast.Expr) or _calls(node):
            self.own.whole = False

    def _call(self, call: ast.Call, loop: dict[str, Any]) -> None:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        argument = self._value(call.args[0], loop) if call.args else None
        if name in _ADDS:
            if isinstance(argument, dict) and {"name", "data_type", "dims"} <= argument.keys():
                getattr(self.own, _ADDS[name]).append(argument)
            else:
                self.own.whole = False
        elif name == "set_max_batch_size" and isinstance(argument, int):
            self.own.max_batch_size = argument
        elif name == "set_max_batch_size" or not name.startswith("set_"):
            self.own.whole = False

    def _value(self, node: ast.expr, loop: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.Name):
            return loop.get(node.id, self._constants.get(node.id))
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, RecursionError, MemoryError):
            return None


def _calls(node: ast.AST) -> bool:
    """Return whether anything is called but `as_dict`, which only reads."""
    calls = (part.func for part in ast.walk(node) if isinstance(part, ast.Call))
    return any(not (isinstance(call, ast.Attribute) and call.attr == "as_dict") for call in calls)
