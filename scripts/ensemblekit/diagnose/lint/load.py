# SPDX-License-Identifier: Apache-2.0
"""What Triton checks when it loads models together: the E2xx faults."""

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tritonclient.grpc import model_config_pb2

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.findings import Finding, did_you_mean, make_finding
from ensemblekit.faults import load as refusals
from ensemblekit.repository.read import read_bytes, unreadable

__all__ = ["check_backend", "check_tensors", "check_versions", "engine_arguments", "loaded_versions"]

_KINDS = model_config_pb2.ModelInstanceGroup


def loaded_versions(model: Model) -> tuple[int, ...]:
    """Return the versions that the model's version_policy loads: the latest one unless it says otherwise."""
    have, policy = model.folder.versions, model.config.version_policy
    if policy.HasField("specific"):
        return tuple(version for version in have if version in policy.specific.versions)
    if policy.HasField("all"):
        return have
    count = policy.latest.num_versions if policy.HasField("latest") else 1
    return have[-count:] if count > 0 else ()


def check_versions(model: Model) -> Iterator[Finding]:
    """Yield that no version of the model would be loaded."""
    if loaded_versions(model):
        return
    folder = model.folder
    detail, fix = "", ""
    if folder.versions:
        named = ", ".join(str(version) for version in folder.versions)
        detail = f"There are the versions {named}, and version_policy wants another."
        fix = "Change version_policy, or make the folder that it names."
    elif folder.subfolders:
        detail = f"The folders {', '.join(folder.subfolders)} are no versions."
    if folder.name.startswith("."):
        fix = "Remove this folder from the repository: Triton takes every folder for a model, hidden ones too."
    yield make_finding("E207", folder, ("version_policy",) if folder.versions else (), detail=detail, fix=fix)


def check_tensors(model: Model) -> Iterator[Finding]:
    """Yield tensors that are declared incompletely."""
    for kind, tensors in (("input", model.config.input), ("output", model.config.output)):
        for index, tensor in enumerate(tensors):
            reason = _incomplete(tensor) or _badly_reshaped(tensor, batches=model.config.max_batch_size > 0)
            if reason:
                named = f"'{tensor.name}' " if tensor.name else ""
                yield make_finding("E213", model.folder, (kind, index), reason=f"model {kind} {named}{reason}")


def _incomplete(tensor: Any) -> str:
    if not tensor.name:
        return "must specify 'name'"
    if tensor.data_type == model_config_pb2.TYPE_INVALID:
        return "must specify 'data_type'"
    if not tensor.dims:
        return "must specify 'dims'"
    if any(size < 1 and size != -1 for size in tensor.dims):
        return refusals.BAD_DIMENSION
    return ""


def _badly_reshaped(tensor: Any, *, batches: bool) -> str:
    """Return why dims and reshape do not hold the same elements."""
    if not tensor.HasField("reshape"):
        return ""
    dims, shape = list(tensor.dims), list(tensor.reshape.shape)
    if not shape and not batches:
        return refusals.EMPTY_RESHAPE
    if any(size < 1 and size != -1 for size in shape):
        return refusals.BAD_RESHAPE
    if -1 in dims and -1 in shape and dims.count(-1) != shape.count(-1):
        return "has different number of variable-size dimensions for dims and reshape"
    return "" if _parts(dims) == _parts(shape) else "has different size for dims and reshape"


def _parts(shape: list[int]) -> list[int]:
    """Return the numbers of elements between sizes that vary."""
    parts = [1]
    for size in shape:
        if size == -1:
            parts.append(1)
        else:
            parts[-1] *= size
    return parts


def check_backend(model: Model, *, gpus: int | None) -> Iterator[Finding]:
    """Yield what the model's own backend will refuse.

    Args:
        model: The model.
        gpus: GPUs of the server; None if that is not known.
    """
    if model.config.backend == "python":
        yield from _check_python(model)
    elif model.config.backend == "vllm":
        yield from _check_vllm(model)
    for index, group in enumerate(model.config.instance_group):
        if group.kind == _KINDS.KIND_GPU and gpus == 0:
            name = group.name or f"{model.name}_{index}"
            yield make_finding("E217", model.folder, ("instance_group", index, "kind"), group=name)


def _check_python(model: Model) -> Iterator[Finding]:
    if any(character.isspace() for character in model.name):
        detail = f'The name "{model.name}" has a blank.'
        yield make_finding("S456", model.folder, file=model.folder.path, detail=detail)
    for version in loaded_versions(model):
        file = model.folder.inside(str(version), model.config.default_model_filename)
        if file is None:
            continue  # it leaves the folder: a finding of its own
        if not file.is_file():
            detail = f"It is {reason}." if (reason := unreadable(file)) else ""
            yield make_finding("E215", model.folder, file=model.folder.path / str(version), path=file, detail=detail)
            continue
        try:
            ast.parse(read_bytes(file))
        except (OSError, RecursionError, MemoryError):
            continue  # too large to be read or understood here; `unread` says so
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            reason = f"SyntaxError: {getattr(error, 'msg', error)} ({file.name}, line {line})"
            yield make_finding("E216", model.folder, file=file, line=line, version=version, reason=reason)


def engine_arguments(model: Model, version: int) -> dict[str, Any] | None:
    """Return what model.json says to vLLM, None if it is missing or no JSON object."""
    try:
        value = json.loads(read_bytes(model.folder.path / str(version) / "model.json"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _check_vllm(model: Model) -> Iterator[Finding]:
    written = model.folder.config or model_config_pb2.ModelConfig()
    if written.max_batch_size > 0:
        reason = refusals.BATCHES_OF_VLLM.format(size=written.max_batch_size, model=model.name)
        yield make_finding("E220", model.folder, ("max_batch_size",), reason=reason)
    if written.HasField("model_transaction_policy") and not written.model_transaction_policy.decoupled:
        reason = refusals.DECOUPLED_OF_VLLM.format(model=model.name)
        yield make_finding("E220", model.folder, ("model_transaction_policy",), reason=reason)
    for version in loaded_versions(model):
        arguments = engine_arguments(model, version)
        file = model.folder.path / str(version) / "model.json"
        if arguments is None or "model" not in arguments:
            what = "holds no JSON object that names `model`" if file.is_file() else "is missing"
            place = file if file.is_file() else file.parent
            yield make_finding("E219", model.folder, file=place, reason=f"model.json {what}", detail=f"It {what}.")
            continue
        size = arguments.get("tensor_parallel_size", 1)
        for index, group in enumerate(written.instance_group):
            if group.kind == _KINDS.KIND_GPU and isinstance(size, int) and size > 1:
                yield make_finding("E218", model.folder, ("instance_group", index, "kind"))


def unknown_backend(model: Model, known: frozenset[str]) -> Iterator[Finding]:
    """Yield that the server has no backend of this name, if all it has are known."""
    if model.config.backend and model.config.backend not in known:
        finding = make_finding("E214", model.folder, ("backend",), backend=model.config.backend)
        yield replace(finding, why=f"{did_you_mean(model.config.backend, known)} {finding.why}".strip())
