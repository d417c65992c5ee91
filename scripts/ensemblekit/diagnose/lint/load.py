# SPDX-License-Identifier: Apache-2.0
"""What Triton and a model's backend check when they load it: the E2xx faults, and the files that a config needs.

A path that leaves the model's folder is not opened, and nothing is executed.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ensemblekit.diagnose.lint.autocomplete import LONGEST_CODE, Model, parse_code
from ensemblekit.diagnose.lint.findings import Finding, did_you_mean, make_finding
from ensemblekit.faults import load as refusals
from ensemblekit.faults.server import NO_CANONICAL_PATH, NO_TEXT_FILE
from ensemblekit.repository.read import read_bytes, unreadable
from ensemblekit.repository.textproto import model_config_pb2

__all__ = [
    "EXECUTION_ENVIRONMENT",
    "MODEL_DIRECTORY",
    "check_backend",
    "check_files",
    "check_tensors",
    "check_versions",
    "engine_arguments",
    "unknown_backend",
    "unread_code",
]

_KINDS = model_config_pb2.ModelInstanceGroup
EXECUTION_ENVIRONMENT, MODEL_DIRECTORY = "EXECUTION_ENV_PATH", "$$TRITON_MODEL_DIRECTORY"
# what each backend opens in the version folder unless default_model_filename says otherwise: one of these
MODEL_FILES = {
    "onnxruntime": ("model.onnx",),
    "tensorrt": ("model.plan",),
    "pytorch": ("model.pt", "model.py"),
    "tensorflow": ("model.savedmodel", "model.graphdef"),
    "openvino": ("model.xml", "model.onnx", "model.pdmodel"),
    "dali": ("model.dali", "dali.py"),
}
_POINTER = b"version https://git-lfs.github.com/"  # Git LFS has left this where a large file belongs
_POINTER_BYTES = 1024
_PACK = "Put the archive there (conda-pack makes it), or remove the parameter."


def check_versions(model: Model) -> Iterator[Finding]:
    """Yield that no version of the model would be loaded."""
    if model.versions:
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
                yield model.finding("E213", (kind, index), reason=f"model {kind} {named}{reason}")


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
    """Yield what the model's own backend will refuse, on a server with so many GPUs; None if that is not known."""
    if model.config.backend == "python":
        yield from _check_python(model)
    elif model.config.backend == "vllm":
        yield from _check_vllm(model)
    for index, group in enumerate(model.config.instance_group):
        if group.kind == _KINDS.KIND_GPU and gpus == 0:
            name = group.name or f"{model.name}_{index}"
            yield model.finding("E217", ("instance_group", index, "kind"), group=name)


def _check_python(model: Model) -> Iterator[Finding]:
    if any(character.isspace() for character in model.name):
        detail = f'The name "{model.name}" has a blank.'
        yield model.finding("S456", file=model.folder.path, detail=detail)
    for version in model.versions:
        file = model.folder.inside(str(version), model.config.default_model_filename)
        if file is None:
            continue  # it leaves the folder: a finding of its own
        if not file.is_file():
            detail = f"It is {reason}." if (reason := unreadable(file)) else ""
            yield model.finding("E215", file=model.folder.path / str(version), path=file, detail=detail)
            continue
        try:
            parse_code(file)
        except (OSError, RecursionError, MemoryError):
            continue  # too large to be read or understood here; `unread_code` says so
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            reason = f"SyntaxError: {getattr(error, 'msg', error)} ({file.name}, line {line})"
            yield model.finding("E216", file=file, line=line, version=version, reason=reason)


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
        yield model.finding("E220", ("max_batch_size",), reason=reason)
    if written.HasField("model_transaction_policy") and not written.model_transaction_policy.decoupled:
        reason = refusals.DECOUPLED_OF_VLLM.format(model=model.name)
        yield model.finding("E220", ("model_transaction_policy",), reason=reason)
    for version in model.versions:
        arguments = engine_arguments(model, version)
        file = model.folder.path / str(version) / "model.json"
        if arguments is None or "model" not in arguments:
            what = "holds no JSON object that names `model`" if file.is_file() else "is missing"
            place = file if file.is_file() else file.parent
            yield model.finding("E219", file=place, reason=f"model.json {what}", detail=f"It {what}.")
            continue
        size = arguments.get("tensor_parallel_size", 1)
        for index, group in enumerate(written.instance_group):
            if group.kind == _KINDS.KIND_GPU and isinstance(size, int) and size > 1:
                yield model.finding("E218", ("instance_group", index, "kind"))


def unknown_backend(model: Model, known: frozenset[str]) -> Iterator[Finding]:
    """Yield that the server has no backend of this name, if all it has are known."""
    if model.config.backend and model.config.backend not in known:
        finding = model.finding("E214", ("backend",), backend=model.config.backend)
        yield replace(finding, why=f"{did_you_mean(model.config.backend, known)} {finding.why}".strip())


def unread_code(model: Model) -> Iterator[str]:
    """Yield the files of a Python or vLLM model that were not read: too large, outside its folder, no regular file."""
    for version in model.versions if model.config.backend in ("python", "vllm") else ():
        name = "model.json" if model.config.backend == "vllm" else model.config.default_model_filename
        file = model.folder.inside(str(version), name)
        if file is None or (file.is_file() and unreadable(file, LONGEST_CODE)):
            yield f"{model.name}/{version}/{name}"


def check_files(model: Model) -> Iterator[Finding]:
    """Yield the files that a model's load needs and that are not there."""
    if model.config.backend in MODEL_FILES:
        yield from _check_model_files(model)
    for index, output in enumerate(model.config.output):
        file = model.folder.inside(output.label_filename)
        if output.label_filename and file and (reason := _unusable(file)):
            yield _missing("S423", model, ("output", index, "label_filename"), file, reason)
    for index, warmup in enumerate(model.config.model_warmup):
        for entry in warmup.inputs.values():
            file = model.folder.inside("warmup", entry.input_data_file)
            if entry.input_data_file and file and (reason := _unusable(file)):
                yield _missing("S423", model, ("model_warmup", index), file, reason, field="input_data_file")
    if model.config.backend in ("python", "vllm") and EXECUTION_ENVIRONMENT in model.config.parameters:
        yield from _check_environment(model)


def _unusable(file: Path) -> str:
    return unreadable(file) or ("" if file.exists() else "not there")


def _missing(
    code: str, model: Model, at: tuple[str | int, ...], file: Path, reason: str, field: str = "label_filename"
) -> Finding:
    says = NO_TEXT_FILE.format(file=file) if reason == "not there" else ""
    return model.finding(code, at, says=says, detail=f"{field} asks for {file}: {reason}.")


def _check_model_files(model: Model) -> Iterator[Finding]:
    folder, config = model.folder, model.config
    named = folder.config.default_model_filename if folder.config else ""
    names = (*([named] if named else MODEL_FILES[config.backend]), *config.cc_model_filenames.values())
    for version in model.versions:
        paths = [folder.inside(str(version), name) for name in names]
        files = [path for path in paths if path and path.exists()]
        place = folder.path / str(version)
        if not files and all(paths):
            detail = f"{config.backend} looks for {' or '.join(names)} in {place}, and there is none."
            yield make_finding("S422", folder, file=place, detail=detail)
        for file in files:
            if _is_pointer(file):
                detail = f"{file.name} is a pointer of Git LFS: the file itself was not fetched."
                yield make_finding("S422", folder, file=file, detail=detail, fix="Fetch it: `git lfs pull`.")
            elif not file.is_dir() and not file.is_file():
                yield make_finding("S422", folder, file=file, detail=f"{file.name}: {unreadable(file)}.")


def _is_pointer(file: Path) -> bool:
    try:
        return read_bytes(file, _POINTER_BYTES).startswith(_POINTER)
    except OSError:
        return False  # what is larger is none


def _check_environment(model: Model) -> Iterator[Finding]:
    """Yield an archive that is not there; of a path outside the model only the server knows, so that is a warning."""
    value = model.config.parameters[EXECUTION_ENVIRONMENT].string_value
    own = value.startswith(MODEL_DIRECTORY)
    path = Path(value.replace(MODEL_DIRECTORY, str(model.folder.path)))
    at = ("parameters", ("key", EXECUTION_ENVIRONMENT))
    if own and not path.exists():
        says = NO_CANONICAL_PATH.format(path=path)
        yield model.finding("S424", at, says=says, detail=f"There is no {path}.", fix=_PACK)
    elif not own and not (path.is_absolute() and path.exists()):
        where = "this machine has no such file" if path.is_absolute() else "it is no whole path"
        yield model.finding("S424", at, severity="warning", detail=f"It is {value}, and {where}.")
    elif path.is_dir() and not (path / "bin" / "activate").exists():
        yield model.finding("S425", at, detail=f"The folder {path} has no bin/activate.")
