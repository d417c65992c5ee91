# SPDX-License-Identifier: Apache-2.0
"""Read a model repository from the disk as Triton's poll sees it, and say what is no repository at all."""

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from ensemblekit.errors import ParameterError
from ensemblekit.repository.textproto import Source

__all__ = ["CONFIG_NAME", "ModelFolder", "Problem", "read_repository"]

CONFIG_NAME = "config.pbtxt"
MAXIMUM_CONFIG_BYTES = 2**20  # a config has a few kilobytes; what is larger is some other file under its name
_POSITION = re.compile(r"^(\d+):(\d+) ?: ?(.*)$", re.DOTALL)
_OTHER_FILES = {"warmup", "initial_state"}  # folders of a model that Triton knows and that are no versions


@dataclass(frozen=True)
class Problem:
    """Why a config.pbtxt cannot be parsed, and where."""

    reason: str
    line: int | None


@dataclass(frozen=True)
class ModelFolder:
    """One folder of a repository, which Triton takes for a model.

    Attributes:
        name: The folder's name, which is the model's.
        path: The folder.
        config: Its config.pbtxt, None without one or if it cannot be parsed.
        problem: Why it cannot be parsed.
        text: The config's text.
        subfolders: Names of its folders, sorted.
    """

    name: str
    path: Path
    config: model_config_pb2.ModelConfig | None
    problem: Problem | None
    text: str
    subfolders: tuple[str, ...]

    @property
    def config_path(self) -> Path:
        """Where its config.pbtxt is, or would be."""
        return self.path / CONFIG_NAME

    @property
    def has_config(self) -> bool:
        """Whether there is a config.pbtxt, valid or not."""
        return self.config is not None or self.problem is not None

    @cached_property
    def source(self) -> Source:
        """The places of the config's fields."""
        return Source(self.text)

    @cached_property
    def versions(self) -> tuple[int, ...]:
        """The versions that Triton sees: folders whose name is a number, without leading zeros."""
        plain = (name for name in self.subfolders if name not in _OTHER_FILES)
        numbers = (int(name) for name in plain if re.fullmatch(r"0|[1-9]\d*", name))
        return tuple(sorted(numbers))

    def files(self, subfolder: str) -> frozenset[str]:
        """Return the names in one of its folders."""
        try:
            return frozenset(os.listdir(self.path / subfolder))
        except OSError:
            return frozenset()

    def deeper_configs(self) -> tuple[Path, ...]:
        """Return the config.pbtxt files one and two levels too deep."""
        found = [*self.path.glob(f"*/{CONFIG_NAME}"), *self.path.glob(f"*/*/{CONFIG_NAME}")]
        return tuple(sorted(found))


def read_repository(repository: Path) -> tuple[tuple[ModelFolder, ...], tuple[Path, ...]]:
    """Return the model folders of a repository, and the links in it that lead nowhere.

    Raises:
        ParameterError: It is not a folder that can be read, it is empty, or it is the folder of one model.
    """
    entries = _entries(repository)
    broken = tuple(entry for entry in entries if entry.is_symlink() and not _leads_somewhere(entry))
    folders = [entry for entry in entries if entry not in broken and entry.is_dir()]
    if (repository / CONFIG_NAME).is_file():
        raise _unusable(
            repository,
            f"a {CONFIG_NAME} beside the folders: this is one model, not a repository",
            f"give the folder above it: `ensemblekit lint {repository.absolute().parent}`",
        )
    if not folders and not broken:
        what = f"{len(entries)} files and no folder" if entries else "an empty folder"
        raise _unusable(repository, what, "a model repository holds one folder per model, each with its config.pbtxt")
    return tuple(_read_folder(folder) for folder in folders), broken


def _leads_somewhere(link: Path) -> bool:
    try:
        link.stat()
    except OSError:
        return False
    return True


def _entries(repository: Path) -> list[Path]:
    try:
        return sorted(repository.iterdir())
    except FileNotFoundError:
        raise _unusable(repository, "no such folder", "check the path; it is the one for --model-repository") from None
    except NotADirectoryError:
        raise _not_a_folder(repository) from None
    except PermissionError:
        raise _forbidden(repository) from None
    except OSError as error:  # a link that leads to itself, a dead mount
        raise _unusable(repository, error.strerror or str(error), "see what is there: `ls -ld` on each part") from None


def _not_a_folder(path: Path) -> ParameterError:
    size = path.stat().st_size
    if path.name == CONFIG_NAME:
        hint = f"give the repository, two folders up: `ensemblekit lint {path.absolute().parent.parent}`"
    elif path.suffix == ".log":
        hint = f"for a log there is `ensemblekit explain {path}`; lint wants the folder that holds the models"
    else:
        hint = "give the folder that holds one folder per model"
    return _unusable(path, f"a file of {size:,} bytes, not a folder", hint)


def _forbidden(path: Path) -> ParameterError:
    owner = f"its mode is {path.stat().st_mode & 0o777:03o}" if os.access(path.parent, os.X_OK) else "so is its parent"
    return _unusable(
        path,
        f"permission denied for user {os.geteuid()}; {owner}",
        f"give this user the right to read it: `chmod -R a+rX {path}`; the server needs it too",
    )


def _unusable(path: Path, found: str, hint: str) -> ParameterError:
    return ParameterError(f"lint the model repository {path}", found=found, hint=hint)


def _read_folder(path: Path) -> ModelFolder:
    try:
        subfolders = tuple(sorted(entry.name for entry in path.iterdir() if entry.is_dir()))
        file = path / CONFIG_NAME
        if not file.is_file():
            return ModelFolder(path.name, path, None, None, "", subfolders)
        large = file.stat().st_size > MAXIMUM_CONFIG_BYTES
        content = b"" if large else file.read_bytes()
    except PermissionError as error:
        raise _forbidden(Path(error.filename or path)) from None
    if large:
        problem = Problem(f"{file.stat().st_size:,} bytes: too large for a config, some other file", None)
        return ModelFolder(path.name, path, None, problem, "", subfolders)
    text = content.decode("utf-8", errors="replace")
    config, parse_problem = _parse(content, text)
    return ModelFolder(path.name, path, config, parse_problem, text, subfolders)


def _parse(content: bytes, text: str) -> tuple[model_config_pb2.ModelConfig | None, Problem | None]:
    if content.startswith(b"\xef\xbb\xbf"):
        return None, Problem("a byte order mark before the first field; save the file as UTF-8 without it", 1)
    if b"\0" in content:
        return None, Problem("binary data: this is no text file", None)
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig()), None
    except text_format.ParseError as error:
        match = _POSITION.match(str(error))
        return None, Problem(match[3] if match else str(error), int(match[1]) if match else None)
