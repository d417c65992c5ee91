# SPDX-License-Identifier: Apache-2.0
"""One table of command lines, read by the set-up before there is an environment and by the command itself."""

import ast
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ensemblekit.batch.notebooks import read_sets
from ensemblekit.cli.main import app
from ensemblekit.cli.run_grammar import GivenTwiceError, merged, read_run
from ensemblekit.errors import ParameterError
from ensemblekit.paths import repo_root
from setup.options import GRAMMAR, choose_engine, load_grammar, parse
from setup.options import read_sets as set_up_sets

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
def test_grammar_reads_parameters_in_order_and_leaves_the_rest(case: dict[str, Any]) -> None:
    words = read_run(case["words"])

    assert [list(pair) for pair in words.parameters] == case["parameters"]
    assert not set(words.rest) - set(case["words"])


@pytest.mark.parametrize("case", CASES)
def test_set_up_chooses_the_environment(case: dict[str, Any]) -> None:
    options, command = parse(["--exec", "ensemblekit", "run", *case["words"]])

    assert choose_engine(options, gpu=False) == case["engine"]
    assert options["device"] == case.get("device", "auto")
    assert command == ["ensemblekit", "run", *case["words"]]


@pytest.mark.parametrize("case", CASES)
def test_command_sees_the_same_parameters(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if "refused" in case:
        with pytest.raises(ParameterError, match=case["refused"]):
            seen_by_the_command(case["words"], monkeypatch)
        return

    assert seen_by_the_command(case["words"], monkeypatch) == merged([(n, v) for n, v in case["parameters"]])


def test_merged_refuses_two_different_values() -> None:
    assert merged([("A", "1"), ("A", "1")]) == {"A": "1"}
    with pytest.raises(GivenTwiceError, match="A is given twice, as '1' and as '2'") as error:
        merged([("A", "1"), ("A", "2")])
    assert (error.value.name, error.value.first, error.value.second) == ("A", "1", "2")


def test_device_of_the_set_up_itself_counts_where_the_run_names_none() -> None:
    options, _ = parse(["--device", "cuda", "--exec", "ensemblekit", "run", "--only", "01"])

    assert options["device"] == "cuda"


@pytest.mark.parametrize(
    ("asked", "engine", "device"),
    [
        pytest.param(["--quick"], "base", "auto", id="quick"),
        pytest.param(["-p", "ENGINE=stand-in"], "base", "auto", id="stand-in"),
        pytest.param(["--device", "cpu"], "cpu", "cpu", id="full-on-the-cpu"),
        pytest.param(["-p", "ENGINE=stand-in", "--sweep", "sets.yaml"], "base", "auto", id="sweep-of-stand-ins"),
        pytest.param(["--sweep", "sets.yaml"], "cpu", "auto", id="sweep-of-both"),
    ],
)
@pytest.mark.parametrize("spelling", ["--resume NAME --runs-dir RUNS", "--runs-dir=RUNS --resume=NAME"])
def test_set_up_of_a_resumed_run_chooses_the_environment_of_its_plan(
    asked: list[str], engine: str, device: str, spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sets.yaml").write_text("- {RELEASE: 24.08, ENGINE: stand-in}\n- {RELEASE: 24.09}\n")
    if asked[0] == "-p" and "--sweep" in asked:
        Path("sets.yaml").write_text("- {RELEASE: 24.08}\n- {RELEASE: 24.09}\n")
    monkeypatch.setattr("ensemblekit.cli.run_progress._execute_one", lambda *_: 0)
    assert CliRunner().invoke(app, ["run", "--only", "01", "--runs-dir", "runs", *asked]).exit_code == 0
    (folder,) = Path("runs").iterdir()

    words = spelling.replace("NAME", folder.name).replace("RUNS", str(tmp_path / "runs")).split()
    options, _ = parse(["--exec", "ensemblekit", "run", *words])

    assert (choose_engine(options, gpu=False), options["device"]) == (engine, device)


SWEEPS = {
    "flow": ("- {RELEASE: 24.08, ENGINE: stand-in}\n- { ENGINE: 'stand-in', 'RELEASE' : \"24.10\" }  # two\n", "base"),
    "block": ("# both\n- RELEASE: 24.08\n  ENGINE: stand-in\n\n- ENGINE: stand-in\n  DEVICE: cpu\n", "base"),
    "indented": ("  - ENGINE: stand-in\n    RELEASE: 24.09\n", "base"),
    "one-is-vllm": ("- {ENGINE: stand-in}\n- {RELEASE: 24.08}\n", "cpu"),
    "in-a-comment": ("- {RELEASE: 24.08} # ENGINE: stand-in\n", "cpu"),
    "too-much-yaml": ("[{ENGINE: stand-in}, {ENGINE: stand-in}]\n", "cpu"),
    "anchors": ("- &one {ENGINE: stand-in}\n- *one\n", "cpu"),
    "no-list": ("ENGINE: stand-in\n", "cpu"),
}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_set_up_of_a_sweep_chooses_the_environment_of_its_sets(sweep: str, tmp_path: Path) -> None:
    text, engine = SWEEPS[sweep]
    file = tmp_path / "sweep.yaml"
    file.write_text(text)

    options, _ = parse(["--exec", "ensemblekit", "run", f"--sweep={file}"])
    given, _ = parse(["--exec", "ensemblekit", "run", "-p", "ENGINE=stand-in", "--sweep", str(file)])
    asked, _ = parse(["--exec", "ensemblekit", "run", "--sweep", str(file), "--help"])

    assert choose_engine(options, gpu=False) == engine
    assert choose_engine(given, gpu=False) == "base"
    assert choose_engine(asked, gpu=False) == "base"
    if sets := set_up_sets(text):
        assert sets == read_sets(file)


def test_set_up_of_a_set_that_takes_vllm_instead_needs_it(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("- {ENGINE: vllm}\n")

    options, _ = parse(["--exec", "ensemblekit", "run", "-p", "ENGINE=stand-in", "--sweep", str(file)])

    assert choose_engine(options, gpu=False) == "cpu"


def test_set_up_leaves_a_run_without_a_plan_to_the_command(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "plan.json").write_text('{"given": []}')

    for name in ("broken", "absent", ""):
        options, _ = parse(["--exec", "ensemblekit", "run", "--resume", name, "--runs-dir", str(tmp_path)])
        assert choose_engine(options, gpu=False) == "cpu"


def test_grammar_needs_no_environment_and_no_new_python() -> None:
    with open(GRAMMAR) as file:
        tree = ast.parse(file.read(), feature_version=(3, 6))

    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"typing"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    assert load_grammar().read_run(["-p", "A=1"]).parameters == [("A", "1")]
