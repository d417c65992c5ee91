# SPDX-License-Identifier: Apache-2.0
"""The files that a config needs beside it: they are looked for, and a path that leaves the folder is not opened."""

from collections.abc import Iterator
from pathlib import Path

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.findings import Finding, make_finding
from ensemblekit.diagnose.lint.load import loaded_versions
from ensemblekit.repository.read import read_bytes, unreadable

__all__ = ["EXECUTION_ENVIRONMENT", "MODEL_DIRECTORY", "check_files", "check_paths"]

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
    says = f"failed to open text file for read {file}: No such file or directory" if reason == "not there" else ""
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
        says = f"Failed to get the canonical path for {path}."
        yield make_finding("S424", model.folder, at, says=says, detail=f"There is no {path}.", fix=_PACK)
    elif not own and not (path.is_absolute() and path.exists()):
        where = "this machine has no such file" if path.is_absolute() else "it is no whole path"
        yield make_finding("S424", model.folder, at, severity="warning", detail=f"It is {value}, and {where}.")
    elif path.is_dir() and not (path / "bin" / "activate").exists():
        yield make_finding("S425", model.folder, at, detail=f"The folder {path} has no bin/activate.")


_PACK = "Put the archive there (conda-pack makes it), or remove the parameter."


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
