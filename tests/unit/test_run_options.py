# SPDX-License-Identifier: Apache-2.0
"""The table of command lines that the set-up reads too: what `ensemblekit run` hands on to the lessons."""

import tomllib
from typing import Any

import pytest
from click.testing import CliRunner

from ensemblekit.cli.main import app
from ensemblekit.cli.run_grammar import merged, read_run
from ensemblekit.errors import ParameterError
from ensemblekit.paths import repo_root

TABLE = repo_root() / "tests" / "data" / "run_command_lines.toml"
CASES = [
    pytest.param(case, id=" ".join(case["words"]) or "nothing") for case in tomllib.loads(TABLE.read_text())["case"]
]


def seen_by_the_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `ensemblekit run` hands on to the lessons; an error is raised, what click prints becomes one."""
    seen = list[dict[str, str]]()

    def execute(only: list[str], given: dict[str, str], **options: Any) -> int:
        seen.append(dict(given))
        return 0

    monkeypatch.setattr("ensemblekit.cli.run_progress.execute", execute)
    result = CliRunner().invoke(app, ["run", *words])
    if isinstance(result.exception, ParameterError):
        raise result.exception
    if not seen:
        raise ParameterError("run", found=result.output.lower(), hint="none")
    return seen[0]


@pytest.mark.parametrize("case", CASES)
def test_command_sees_the_parameters_of_the_table(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [list(pair) for pair in read_run(case["words"]).parameters] == case["parameters"]
    if "refused" in case:
        with pytest.raises(ParameterError, match=case["refused"]):
            seen_by_the_command(case["words"], monkeypatch)
        return

    assert seen_by_the_command(case["words"], monkeypatch) == merged([(n, v) for n, v in case["parameters"]])
