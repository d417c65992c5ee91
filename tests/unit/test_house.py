# SPDX-License-Identifier: Apache-2.0
"""The house has an order: what may import what, and who alone does certain things."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ensemblekit.faults.catalogue import CATALOGUE

PACKAGE = Path(__file__).parents[2] / "scripts" / "ensemblekit"
GROUND = ("errors", "paths", "releases", "gpu", "settings", "records")
# from the ground up: a room imports its own modules and those of rooms before it
ROOMS = ("faults", "clients", "assets", "repository", "servers", "diagnose", "workarounds", "bench", "matrix", "bundle")
ROOMS += ("batch", "lesson", "checks", "workshop", "cli")
LEAST_WORDS = 20  # letters of a server's sentence that nobody writes by chance


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    """Return the module's name below the package, for example `servers.process`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def _floor(module: str) -> int:
    first = module.split(".")[0]
    return 1 + ROOMS.index(first) if first in ROOMS else 0


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _imports(path: Path) -> Iterator[str]:
    """Yield the package's modules that a module imports, wherever in it, by their names below the package."""
    names = {_name(one) for one in _modules()}
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ensemblekit"):
            module = (node.module or "").removeprefix("ensemblekit").lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield inner if inner in names else module
        elif isinstance(node, ast.Import):
            yield from (alias.name[12:] for alias in node.names if alias.name.startswith("ensemblekit."))


def _strings(path: Path) -> Iterator[str]:
    """Yield the texts in a module's code; docstrings are no code."""
    tree = _tree(path)
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


def test_every_module_belongs_to_the_ground_or_to_a_room() -> None:
    assert _modules()
    strangers = [
        _name(path) for path in _modules() if _name(path).split(".")[0] not in (*GROUND, *ROOMS, "", "__init__")
    ]
    assert strangers == []


def test_imports_go_down_only() -> None:
    upward = [
        f"{_name(path)} imports {other}"
        for path in _modules()
        for other in _imports(path)
        if _floor(other) > _floor(_name(path)) and _name(path) not in ("", "__init__")
    ]
    assert upward == []


def test_imports_make_no_circle() -> None:
    arrows = {_name(path): set(_imports(path)) for path in _modules()}
    done: set[str] = set()

    def walk(module: str, above: tuple[str, ...]) -> None:
        if module in above:
            pytest.fail("circle: " + " -> ".join([*above[above.index(module) :], module]))
        if module not in done:
            for other in sorted(arrows.get(module, ())):
                walk(other, (*above, module))
            done.add(module)

    for module in arrows:
        walk(module, ())


def test_only_cli_parses_arguments() -> None:
    """A file with a leading underscore is a program of its own, which another process runs."""
    parsers = re.compile(r"^\s*(?:import|from) (?:typer|click|argparse|getopt)\b|\bsys\.argv\b", re.MULTILINE)
    others = [
        _name(path)
        for path in _modules()
        if parsers.search(path.read_text()) and _floor(_name(path)) < _floor("cli") and not path.name.startswith("_")
    ]
    assert others == []


def _sentences() -> list[str]:
    """Return pieces of servers' sentences: what stands between the special characters of the catalogue's patterns."""
    pieces = {
        piece.strip() for entry in CATALOGUE for piece in re.split(r"\(\?P<\w+>|[\\\[\](){}|*+?.^$]", entry.pattern)
    }
    return sorted(piece for piece in pieces if len(piece) >= LEAST_WORDS and " " in piece)


def test_only_faults_matches_the_words_of_a_server() -> None:
    sentences = _sentences()
    assert len(sentences) > 50
    others = [
        f"{_name(path)}: {sentence}"
        for path in _modules()
        if not _name(path).startswith("faults")
        for text in _strings(path)
        for sentence in sentences
        if sentence in text
    ]
    assert others == []


def test_only_the_repository_reader_reads_a_config() -> None:
    reads = re.compile(r"config\.pbtxt\"?\)?\)?\.(?:read_text|read_bytes|open)\(|\btext_format\b")
    others = [
        _name(path)
        for path in _modules()
        if reads.search(path.read_text()) and _name(path) not in ("repository.read", "repository.textproto")
    ]
    assert others == []


def test_only_the_supervised_process_starts_the_reaper() -> None:
    starters = [_name(path) for path in _modules() if "servers._reaper" in set(_imports(path))]
    assert starters == ["servers.supervised"]


def test_every_test_that_the_readme_of_the_tests_names_exists() -> None:
    tests = Path(__file__).parents[1]
    named = set(re.findall(r"`(test_\w+)`", (tests / "README.md").read_text()))
    there = {name for file in tests.rglob("test_*.py") for name in re.findall(r"def (test_\w+)\(", file.read_text())}

    assert len(named) > 15, named
    assert named <= there, named - there
