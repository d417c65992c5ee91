# SPDX-License-Identifier: Apache-2.0
"""The Python in which the models will run: does it have a numpy that breaks the release's stub?"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tritonclient.grpc import model_config_pb2

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.files import EXECUTION_ENVIRONMENT, MODEL_DIRECTORY
from ensemblekit.diagnose.lint.findings import Finding, make_finding
from ensemblekit.releases import Release
from ensemblekit.repository.read import read_bytes

__all__ = ["check_numpy", "numpy_version"]

_FOLDER = re.compile(r"numpy-(\d[\w.]*)\.dist-info")


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
            if match := _FOLDER.fullmatch(entry.name):
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
