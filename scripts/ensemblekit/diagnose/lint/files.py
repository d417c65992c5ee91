# SPDX-License-Identifier: Apache-2.0
"""The files that a config needs beside it, and the Python of its models: is all there, and does it fit the release?

A path that leaves the model's folder is not opened, and nothing is executed.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.findings import Finding, make_finding
from ensemblekit.diagnose.lint.load import loaded_versions
from ensemblekit.faults.server import NO_CANONICAL_PATH, NO_TEXT_FILE
from ensemblekit.releases import Release
from ensemblekit.repository.read import read_bytes, unreadable

__all__ = ["check_files", "check_numpy", "check_paths", "numpy_version"]

_NUMPY = re.compile(r"numpy-(\d[\w.]*)\.dist-info")
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
    return make_finding(code, model.folder, at, says=says, detail=f"{field} asks for {file}: {reason}.")


def _check_model_files(model: Model) -> Iterator[Finding]:
    folder, config = model.folder, model.config
    named = folder.config.default_model_filename if folder.config else ""
    names = (*([named] if named else MODEL_FILES[config.backend]), *config.cc_model_filenames.values())
    for version in loaded_versions(model):
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
        yield make_finding("S424", model.folder, at, says=says, detail=f"There is no {path}.", fix=_PACK)
    elif not own and not (path.is_absolute() and path.exists()):
        where = "this machine has no such file" if path.is_absolute() else "it is no whole path"
        yield make_finding("S424", model.folder, at, severity="warning", detail=f"It is {value}, and {where}.")
    elif path.is_dir() and not (path / "bin" / "activate").exists():
        yield make_finding("S425", model.folder, at, detail=f"The folder {path} has no bin/activate.")


def check_paths(model: Model) -> Iterator[Finding]:
    """Yield names of files that lead out of the model's folder: the server follows them, lint does not."""
    config = model.config
    names: list[tuple[tuple[str | int, ...], tuple[str, ...]]] = [
        (("default_model_filename",), ("1", config.default_model_filename)),
        *((("cc_model_filenames",), ("1", name)) for name in config.cc_model_filenames.values()),
        *(
            (("output", index, "label_filename"), (output.label_filename,))
            for index, output in enumerate(config.output)
        ),
    ]
    for at, parts in names:
        if model.folder.inside(*parts) is None:
            yield make_finding("T315", model.folder, at, detail=f"It is {parts[-1]}.")


def numpy_version(python: Path) -> str | None:
    """Return the numpy of an interpreter, of an environment's folder or of this process; None without one.

    Args:
        python: An interpreter, or a folder made by venv or conda. Nothing is executed: an environment that
            is not to be trusted can be looked at.
    """
    prefix = python if python.is_dir() else python.parent.parent
    folders = [*prefix.glob("lib/python3*/site-packages"), *prefix.glob("lib/python3*/dist-packages")]
    if prefix.resolve() == Path(sys.prefix).resolve():
        folders += [Path(entry) for entry in sys.path if entry.endswith("-packages")]
    folders += [path for base in folders for path in _added(base)]
    return _first(folders)


def _added(folder: Path) -> Iterator[Path]:
    """Yield the folders that .pth files of an environment add."""
    for file in folder.glob("*.pth"):
        for line in _text(file).splitlines():
            if line.startswith("/"):
                yield Path(line)


def _text(file: Path) -> str:
    try:
        return read_bytes(file).decode(errors="replace")
    except OSError:
        return ""


def _first(folders: Iterable[Path]) -> str | None:
    for folder in folders:
        for entry in sorted(folder.glob("numpy-*.dist-info")):
            if match := _NUMPY.fullmatch(entry.name):
                return match[1]
    return None


def check_numpy(models: Mapping[str, Model], release: Release, python: Path | None) -> Iterator[Finding]:
    """Yield Python models with string tensors whose environment has a numpy that the release's stub breaks on."""
    if release.numpy_2_safe:
        return
    for model in models.values():
        if model.config.backend not in ("python", "vllm") or not _has_strings(model):
            continue
        own = _own_environment(model)
        where = own or python
        version = numpy_version(where) if where else None
        if version and int(version.split(".")[0]) >= 2:
            place = ("parameters", ("key", EXECUTION_ENVIRONMENT)) if own else ("backend",)
            detail = f"{where} has numpy {version}, and {release.name} will run {model.name} with it."
            yield make_finding("T304", model.folder, place, detail=detail)


def _has_strings(model: Model) -> bool:
    tensors = (*model.config.input, *model.config.output)
    return any(tensor.data_type == model_config_pb2.TYPE_STRING for tensor in tensors)


def _own_environment(model: Model) -> Path | None:
    if EXECUTION_ENVIRONMENT not in model.config.parameters:
        return None
    text = model.config.parameters[EXECUTION_ENVIRONMENT].string_value
    path = Path(text.replace(MODEL_DIRECTORY, str(model.folder.path)))
    return path if path.is_dir() else None
