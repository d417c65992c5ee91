# SPDX-License-Identifier: Apache-2.0
"""Read a model repository from the disk as Triton's poll sees it, and say what is no repository at all.

A repository may come from anywhere: nothing but regular files is opened, and no more of them read than a limit.
"""

import os
import re
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from google.protobuf import text_format

from ensemblekit.errors import ParameterError, RepositoryError
from ensemblekit.repository.textproto import Source, model_config_pb2

__all__ = ["CONFIG_NAME", "ModelFolder", "Problem", "read_bytes", "read_config", "read_repository", "unreadable"]

CONFIG_NAME = "config.pbtxt"
MAXIMUM_CONFIG_BYTES = 2**20  # a config has a few kilobytes; what is larger is some other file under its name
MAXIMUM_BYTES = 16 * 2**20  # of any other file that is read: code, JSON
_POSITION = re.compile(r"^(\d+):(\d+) ?: ?(.*)$", re.DOTALL)
_OTHER_FILES = {"warmup", "initial_state"}  # folders of a model that Triton knows and that are no versions


def unreadable(path: Path, limit: int = MAXIMUM_BYTES) -> str:
    """Return why a file is not read: a pipe or a device would be read for ever; empty if it can be, or is not there.

    Args:
        path: The file; a link is followed.
        limit: The most bytes that are read.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISREG(found.st_mode):
        return "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device, no regular file"
    return f"{found.st_size:,} bytes: too large" if found.st_size > limit else ""


def read_bytes(path: Path, limit: int = MAXIMUM_BYTES) -> bytes:
    """Return a file's content.

    Raises:
        OSError: It is not there, no regular file, larger than the limit, or cannot be read.
    """
    if reason := unreadable(path, limit):
        raise OSError(f"{path}: {reason}")
    # what was a file a moment ago may be a pipe now: opening it must not wait, and the limit holds all the same
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        return file.read(limit + 1)[:limit]


def read_config(path: Path) -> model_config_pb2.ModelConfig:
    """Return a model's configuration.

    Args:
        path: A config.pbtxt, or the model folder that holds one.

    Raises:
        RepositoryError: There is no such file, or it is not valid; the error names line and column.
    """
    file = path / CONFIG_NAME if path.is_dir() else path
    try:
        return text_format.Parse(read_bytes(file, MAXIMUM_CONFIG_BYTES), model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        hint = "compare the line with Triton's model_config.proto"
        raise RepositoryError(f"read {file}", found=str(error), hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        hint = "a model folder holds config.pbtxt and one folder per version"
        raise RepositoryError(f"read {file}", found=str(error), hint=hint) from error


@dataclass(frozen=True)
class Problem:
    """Why a config.pbtxt cannot be parsed, and where."""

    reason: str
    line: int | None


@dataclass(frozen=True)
class ModelFolder:
    """One folder of a repository, which Triton takes for a model."""

    name: str
    path: Path
    config: model_config_pb2.ModelConfig | None  # its config.pbtxt, None without one or if it cannot be parsed
    problem: Problem | None
    text: str
    subfolders: tuple[str, ...]  # names of its folders, sorted

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

    def inside(self, *parts: str) -> Path | None:
        """Return a path below the folder, joined as Triton does; None if it leaves the folder."""
        relative = os.path.normpath("./" + "/".join(parts))
        return None if relative.split("/")[0] == ".." else self.path / relative

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
    kinds = {entry: _mode(entry) for entry in entries}
    broken = tuple(entry for entry, mode in kinds.items() if mode is None)
    folders = [entry for entry, mode in kinds.items() if mode is not None and stat.S_ISDIR(mode)]
    if (repository / CONFIG_NAME).is_file() and not any((folder / CONFIG_NAME).is_file() for folder in folders):
        hint = f"give the folder above it: `ensemblekit lint {repository.absolute().parent}`"
        raise _unusable(repository, f"a {CONFIG_NAME} beside the folders: this is one model, not a repository", hint)
    if not folders and not broken:
        what = f"{len(entries)} files and no folder" if entries else "an empty folder"
        raise _unusable(repository, what, "a model repository holds one folder per model, each with its config.pbtxt")
    return tuple(_read_folder(folder) for folder in folders), broken


def _mode(entry: Path) -> int | None:
    """Return what an entry is; None for a link that leads nowhere, or in a circle."""
    try:
        return entry.stat().st_mode
    except OSError:
        if not os.access(entry.parent, os.X_OK):
            raise _forbidden(entry.parent) from None
        return None


def _entries(repository: Path) -> list[Path]:
    try:
        return sorted(repository.iterdir())
    except FileNotFoundError:
        found, hint = "no such folder", "check the path; it is the one for --model-repository"
    except NotADirectoryError:
        raise _not_a_folder(repository) from None
    except PermissionError:
        raise _forbidden(repository) from None
    except OSError as error:  # a link that leads to itself, a dead mount
        found, hint = error.strerror or str(error), "see what is there: `ls -ld` on each part"
    raise _unusable(repository, found, hint)


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
    file = path / CONFIG_NAME
    try:
        with os.scandir(path) as entries:
            subfolders = tuple(sorted(entry.name for entry in entries if os.path.isdir(entry)))
        if not file.exists():
            return ModelFolder(path.name, path, None, None, "", subfolders)
        reason = unreadable(file, MAXIMUM_CONFIG_BYTES)
        content = b"" if reason else read_bytes(file, MAXIMUM_CONFIG_BYTES)
    except PermissionError as error:
        raise _forbidden(Path(error.filename or path)) from None
    if reason:
        more = " for a config, some other file" if reason.endswith("large") else ""
        return ModelFolder(path.name, path, None, Problem(f"{reason}{more}", None), "", subfolders)
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
