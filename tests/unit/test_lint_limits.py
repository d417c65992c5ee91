# SPDX-License-Identifier: Apache-2.0
"""Lint ends, whatever it is given: time grows with the size of a repository and not with its square."""

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ensemblekit.diagnose.lint import LintReport, lint_repository
from ensemblekit.diagnose.lint.autocomplete import own_tensors
from ensemblekit.diagnose.lint.fix import corrections

CPU_S = 20.0  # each takes a few seconds at most; what these tests hold took minutes, or never ended
PYTHON = 'backend: "python"\n'
TENSORS = """input [ { name: "A" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "B" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


def _model(repository: Path, name: str, config: str, code: str = "") -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    (repository / name / "1" / "model.py").write_text(code)


def _step(model: str, taken: str = "A", written: str = "B") -> str:
    maps = f'input_map {{ key: "A" value: "{taken}" }} output_map {{ key: "B" value: "{written}" }}'
    return f'{{ model_name: "{model}" model_version: -1 {maps} }}'


def _ensemble(repository: Path, name: str, *steps: str) -> None:
    scheduling = f"ensemble_scheduling {{ step [ {', '.join(steps)} ] }}\n"
    _model(repository, name, f'platform: "ensemble"\n{TENSORS}{scheduling}')


def _many_models(repository: Path) -> None:
    for number in range(2000):
        _model(repository, f"model{number}", PYTHON)


def _many_typos(repository: Path) -> None:
    for number in range(1200):
        _ensemble(repository, f"ensemble{number}", _step(f"absent{number}"))


def _long_chain(repository: Path) -> None:
    for number in range(1100):
        _ensemble(repository, f"e{number}", _step(f"e{number + 1}"))
    _model(repository, "e1100", PYTHON + TENSORS)


def _doubling(repository: Path) -> None:
    """Each ensemble has the next one twice: 2 to the power of 40 ways through them."""
    for number in range(40):
        inner = f"e{number + 1}"
        _ensemble(repository, f"e{number}", _step(inner, "A", "C"), _step(inner, "C", "B"))
    _model(repository, "e40", PYTHON + TENSORS)


def _map(kind: str, name: str) -> str:
    return f'{kind} {{ key: "{name}" value: "{name}" }} '


def _wide_step(repository: Path) -> None:
    inputs = "\n".join(f'input [ {{ name: "A{n}" data_type: TYPE_FP32 dims: [ 1 ] }} ]' for n in range(4000))
    names = [(f"A{number}", f"B{number}") for number in range(4000)]
    maps = " ".join(
        f'input_map {{ key: "{a}" value: "{a}" }} output_map {{ key: "{b}" value: "{b}" }}' for a, b in names
    )
    step = f'{{ model_name: "wide" model_version: -1 {maps} }}'
    _model(repository, "pipe", f'platform: "ensemble"\n{inputs}\nensemble_scheduling {{ step [ {step} ] }}\n')
    _model(repository, "wide", PYTHON)


def _only(config: str) -> Callable[[Path], None]:
    return lambda repository: _model(repository, "model", PYTHON + config)


def _code(text: str) -> Callable[[Path], None]:
    return lambda repository: _model(repository, "model", PYTHON, text)


def _links(repository: Path) -> None:
    _model(repository, "model", PYTHON)
    (repository / "model" / "again").symlink_to(repository)
    for number in range(2000):
        (repository / f"link{number}").symlink_to(f"link{number}")
        (repository / f"folder{number}").mkdir()


CASES: dict[str, Callable[[Path], None]] = {
    "2000-models": _many_models,
    "1200-absent-steps": _many_typos,
    "chain-of-1100": _long_chain,
    "doubling": _doubling,
    "step-of-4000-tensors": _wide_step,
    "links-in-circles": _links,
    "blank-lines": _only("\n" * 500_000 + "max_batch_size: 0\n"),
    "long-list": _only("input [ { dims: [\n" + "1,\n" * 100_000 + "1 ] } ]\n"),
    "parameters": _only('parameters { key: "a" value { string_value: "b" } }\n' * 18_000),
    "paths-outside": _only('cc_model_filenames { key: "a" value: "../../b" }\n' * 15_000),
    "string-in-pieces": _only("name: " + '"a" ' * 120_000 + "\n"),
    "open-templates": _only('name: "' + "${" * 400_000 + '"\n'),
    "nested": _only("ensemble_scheduling " + "{ step " * 90_000),
    "quotes": _only("'" * 300_000),
    "statements": _code("x=1\n" * 3_900_000),
    "sums": _code("x=" + "1+" * 400_000 + "1\n"),
}


def _timed(repository: Path) -> tuple[LintReport, float]:
    before = time.process_time()
    report = lint_repository(repository)
    return report, time.process_time() - before


@pytest.mark.timeout(300)
@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_lint_ends_in_seconds(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)

    report, seconds = _timed(tmp_path)

    assert report.models
    assert seconds < CPU_S


def test_loops_in_loops_are_not_counted_out(tmp_path: Path) -> None:
    loops = "".join(f"{' ' * depth}for a{depth} in [1,2,3,4,5,6,7,8,9,0]:\n" for depth in range(4, 16))
    (tmp_path / "model.py").write_text(f"def auto_complete_config(config):\n{loops}{' ' * 16}config.add_input({{}})\n")

    assert not own_tensors(tmp_path / "model.py").whole


def test_config_of_100_megabytes_is_not_read(tmp_path: Path) -> None:
    _model(tmp_path, "model", "")
    with (tmp_path / "model" / "config.pbtxt").open("wb") as file:
        file.truncate(100 * 10**6)

    report, seconds = _timed(tmp_path)

    assert [finding.code for finding in report.findings] == ["E116"]
    assert seconds < 1


def test_archive_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    environment = 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/e.zip" } }\n'
    _model(tmp_path, "model", PYTHON + environment)
    with zipfile.ZipFile(tmp_path / "model" / "e.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10**8))

    report, seconds = _timed(tmp_path)

    assert not report.errors
    assert seconds < 1


def test_invalid_escape_in_a_model_is_no_warning_of_lint(tmp_path: Path) -> None:
    _model(tmp_path, "model", PYTHON, 'pattern = "\\d"\n')

    assert not lint_repository(tmp_path).findings


EVIL = "a\x1b[31mb\x07\rc\x9b31m\u202e\nerror E101 forged"


@pytest.mark.parametrize("fix", [[], ["--fix", "--yes"]], ids=["text", "fix"])
def test_control_characters_of_names_and_values_never_reach_the_terminal(fix: list[str], tmp_path: Path) -> None:
    config = 'name: "x\x1b]0;title\x07"\nbackend: "python\x1b[2J"\nparameters { key: "${\x1b[1m}" }\n'
    _model(tmp_path, EVIL, config)
    _ensemble(tmp_path, "pipe\x1bc", _step("absent\x9b1m"))
    (tmp_path / "link\x1b[5m").symlink_to("nowhere")
    command = [sys.executable, "-m", "ensemblekit.cli.main", "lint", str(tmp_path), *fix]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    text = (done.stdout + done.stderr).replace("\n", "")
    assert text.isprintable()
    assert not any(line.startswith("error E101") for line in done.stdout.splitlines())


def test_pipe_that_took_the_place_of_a_config_is_not_written_to(tmp_path: Path) -> None:
    _model(tmp_path, "model", 'name: "other"\nbackend: "python"\n')
    (made,) = corrections(lint_repository(tmp_path))
    (tmp_path / "model" / "config.pbtxt").unlink()
    os.mkfifo(tmp_path / "model" / "config.pbtxt")

    with pytest.raises(OSError, match="No such device or address"):
        made.apply()
