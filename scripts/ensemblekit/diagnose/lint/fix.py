# SPDX-License-Identifier: Apache-2.0
"""The corrections that can only be meant one way, as a diff first. Nothing is written through a link."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ensemblekit.diagnose.lint.findings import Finding, LintReport
from ensemblekit.repository.read import read_bytes
from ensemblekit.repository.textproto import Field, Source

__all__ = ["Correction", "corrections", "obstacles"]

_PLATFORM = 'platform: "ensemble"'
Edit = tuple[int, int, str]


@dataclass(frozen=True)
class Correction:
    """A change to one file, or a folder to make."""

    path: Path  # the file, or the folder
    codes: tuple[str, ...]
    before: str  # the file's text; empty for a folder
    after: str  # the text it would have; empty for a folder

    @property
    def diff(self) -> str:
        """The change as a unified diff."""
        if not self.before:
            return f"new folder {self.path}\n"
        lines = self.before.splitlines(keepends=True), self.after.splitlines(keepends=True)
        return "".join(difflib.unified_diff(*lines, str(self.path), f"{self.path} (corrected)"))

    def apply(self) -> None:
        """Make the change.

        Raises:
            OSError: The file cannot be written.
        """
        if self.before:
            flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK  # of a pipe nobody may be reading
            with os.fdopen(os.open(self.path, flags), "wb") as file:
                file.write(self.after.encode())
            return
        self.path.mkdir(parents=True)
        (self.path / ".gitkeep").touch()


def corrections(report: LintReport) -> tuple[Correction, ...]:
    """Return what can be corrected without asking what was meant; the rest stays for its reader."""
    edits: dict[Path, list[tuple[str, Edit]]] = {}
    folders: list[Correction] = []
    for finding in report.findings:
        if _obstacle(finding, report.repository):
            continue
        if finding.code == "E207" and _is_empty_ensemble(finding):
            folder = report.repository / finding.model / "1"
            folders.append(Correction(folder, (finding.code,), "", ""))
        elif maker := _EDITS.get(finding.code):
            source = Source(_read(finding.file))
            if edit := maker(source, finding):
                edits.setdefault(finding.file, []).append((finding.code, edit))
    return (*(_correction(file, made) for file, made in edits.items()), *folders)


def obstacles(report: LintReport) -> tuple[str, ...]:
    """Return which files could not be corrected although the faults in them could, and why."""
    fixable = [finding for finding in report.findings if finding.code in (*_EDITS, "E207")]
    return tuple(dict.fromkeys(words for finding in fixable if (words := _obstacle(finding, report.repository))))


def _obstacle(finding: Finding, repository: Path) -> str:
    """Return why a finding's file is left alone, empty if it is not."""
    file = finding.file
    parts = (repository / part for part in (file.relative_to(repository), *file.relative_to(repository).parents))
    if link := next((part for part in parts if part != repository and part.is_symlink()), None):
        return f"{file} is not changed: {link} is a link, and what it leads to may belong to others"
    if not file.is_file():
        return ""
    try:
        _read(file)
    except (OSError, UnicodeDecodeError) as error:
        return f"{file} is not changed, since it cannot be read: {error}"
    return ""


def _read(file: Path) -> str:
    """Return a file's text with its line ends as they are."""
    return read_bytes(file).decode()


def _is_empty_ensemble(finding: Finding) -> bool:
    """Return whether a folder `1` is all that an ensemble lacks."""
    config = finding.file
    folder = config.parent
    return config.is_file() and _PLATFORM in _read(config) and not any(p.is_dir() for p in folder.iterdir())


def _correction(file: Path, made: list[tuple[str, Edit]]) -> Correction:
    text = before = _read(file)
    line_end = "\r\n" if "\r\n" in before else "\n"
    done: list[Edit] = []
    for _, (start, end, new) in sorted(made, key=lambda entry: entry[1], reverse=True):
        if any(start < other_end and other_start < end for other_start, other_end, _ in done):
            continue
        done.append((start, end, new))
        text = text[:start] + new.replace("\n", line_end) + text[end:]
    return Correction(file, tuple(sorted({code for code, _ in made})), before, text)


def _replace(entry: Field | None, new: str) -> Edit | None:
    return (entry.start, entry.end, new) if entry else None


def _remove(source: Source, entry: Field | None) -> Edit | None:
    """Return the removal of a field, and of its line if nothing else stands in it."""
    if entry is None:
        return None
    text, start, end = source.text, entry.start, entry.end
    line_start, line_end = text.rfind("\n", 0, start) + 1, text.find("\n", end)
    line_end = len(text) if line_end < 0 else line_end + 1
    alone = not text[line_start:start].strip() and not text[end:line_end].strip()
    return (line_start, line_end, "") if alone else (start, end, "")


def _platform(source: Source, finding: Finding) -> Edit | None:
    entry = source.find("platform")
    meant = entry is not None and bool(difflib.get_close_matches(entry.value, ["ensemble"]))
    return _replace(entry, _PLATFORM) if meant and source.find("ensemble_scheduling") else None


def _backend_name(source: Source, finding: Finding) -> Edit | None:
    entry = source.find("platform")
    if entry is None or source.find("ensemble_scheduling"):
        return _replace(entry, _PLATFORM)
    return _replace(entry, f'backend: "{entry.value}"')


def _backend_ensemble(source: Source, finding: Finding) -> Edit | None:
    entry = source.find("backend")
    return _replace(entry, _PLATFORM) if entry and entry.value == "ensemble" else None


def _add_platform(source: Source, finding: Finding) -> Edit | None:
    entry = source.find("ensemble_scheduling")
    first = source.find("name") or entry
    if first is None:
        return None
    return (first.end, first.end, f"\n{_PLATFORM}") if first.name == "name" else (0, 0, f"{_PLATFORM}\n")


def _without(*names: str) -> Callable[[Source, Finding], Edit | None]:
    """Return the removal of the first of these fields that stands in the finding's line; of one field, wherever."""

    def edit(source: Source, finding: Finding) -> Edit | None:
        entries = [entry for name in names if (entry := source.find(name))]
        return _remove(source, next((one for one in entries if len(names) == 1 or one.line == finding.line), None))

    return edit


_EDITS: dict[str, Callable[[Source, Finding], Edit | None]] = {
    "E102": _platform,
    "E103": _backend_name,
    "E104": _backend_ensemble,
    "E105": _without("backend"),
    "E106": _add_platform,
    "E109": _without("instance_group", "optimization", "model_warmup"),
    "E115": _without("name"),
    "E218": lambda source, finding: _replace(source.find("instance_group", 0, "kind"), "kind: KIND_MODEL"),
    "E220": _without("max_batch_size", "model_transaction_policy"),
}
