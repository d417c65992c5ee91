# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings are what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "scripts" / "ensemblekit"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text()]


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_examples_of_a_module_give_what_they_show(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = doctest.testmod(importlib.import_module(_name(path)))

    assert done.attempted > 0
    assert done.failed == 0, capsys.readouterr().out


def test_modules_with_examples_are_found() -> None:
    assert len(MODULES) > 10
