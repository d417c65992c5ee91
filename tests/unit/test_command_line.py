# SPDX-License-Identifier: Apache-2.0
"""The edge of the program: what nothing behind it could use is one clear error, exit code 2, and no traceback."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ensemblekit.cli import main as program
from ensemblekit.cli import run_progress
from ensemblekit.cli.main import COMMANDS, app, main
from ensemblekit.errors import KitError
from ensemblekit.paths import repo_root

PROGRAM = Path(sys.executable).with_name("ensemblekit")
LONG = "x" * 100_000
LOG = repo_root() / "tests" / "data" / "logs" / "genuine-24.08-ensemble-off.log"
REPOSITORY = repo_root() / "model_repo"
HEAVY = ("papermill", "nbformat", "jupyter_core", "IPython", "matplotlib", "pandas", "vllm", "torch", "numpy", "grpc")
NOT_NEEDED = (*HEAVY, "tritonclient.grpc", "httpx", "pydantic", "python_on_whales")


def said(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    """Run the command in this process, as its entry point does; return its exit code and its words on stderr."""
    monkeypatch.setattr(sys, "argv", ["ensemblekit", *words])
    monkeypatch.setattr(program, "_listen_to_signals", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0), capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(["run", "--timeout", "inf"], "--timeout", id="timeout-inf"),
        pytest.param(["run", "--timeout", "nan"], "--timeout", id="timeout-nan"),
        pytest.param(["serve", "--timeout", "1e300"], "--timeout", id="timeout-huge"),
        pytest.param(["doctor", "--ready-timeout", "inf"], "--ready-timeout", id="ready-timeout-inf"),
        pytest.param(["run", "--only", ""], "--only", id="only-empty"),
        pytest.param(["run", "--only", LONG], "longer than 32768 characters", id="only-of-100-kB"),
        pytest.param(["lint", LONG], "longer than 32768 characters", id="repository-of-100-kB"),
        pytest.param(["lint", LONG[:5000]], "File name too long", id="repository-of-5-kB"),
        pytest.param(["doctor", LONG[:5000]], "File name too long", id="doctor-of-5-kB"),
        pytest.param(["probe", LONG[:5000]], "longer than 4096", id="probe-of-5-kB"),
        pytest.param(["explain", LONG[:5000]], "longer than 4096", id="explain-of-5-kB"),
        pytest.param(["doctor", "--request", "[" * 20_000], "is no JSON", id="request-nested"),
        pytest.param(["doctor", "--request", '{"A":' + "[" * 500 + "]" * 500 + "}"], "nested", id="request-deep"),
        pytest.param(["doctor", "--request", "[1]"], "is no object", id="request-list"),
        pytest.param(["doctor", "--python", "/nowhere/python"], "does not exist", id="python-not-there"),
        pytest.param(["explain", "/proc/self/mem"], "/proc/self/mem", id="log-that-cannot-be-read"),
        pytest.param(["probe", LONG[:300]], "Could not", id="image-of-300-letters"),
        pytest.param(["probe", "a b\nc"], "no name", id="image-with-a-line-break"),
        pytest.param(["probe", "UPPER/Case:tag:tag"], "UPPER/Case:tag:tag", id="image-with-two-tags"),
        pytest.param(["probe", "::"], "::", id="image-of-colons"),
        pytest.param(["probe", "http://["], "http://[", id="url-without-a-host"),
        pytest.param(["run", "-p", "RELEASE"], "no value behind it", id="parameter-without-a-value"),
        pytest.param(["run", "-p", "A=1", "-p", "A=2"], "given twice", id="parameter-twice"),
        pytest.param(["run", "--runs-dir", __file__], "is a file", id="runs-dir-is-a-file"),
        pytest.param(["nothing"], "No such command", id="unknown-command"),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(
    words: list[str], told: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, err = said(capfd, monkeypatch, *words)

    assert (code, "Traceback" in err) == (2, False)
    assert told in err
    assert len(err) < 3000


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_error_of_the_disk_is_one_clear_error(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(number, "the disk's own words", str(tmp_path / "run.json"))

    monkeypatch.setattr(run_progress, "run_lessons", full)

    code, err = said(capfd, monkeypatch, "run", "--only", "01", "--quick", "--runs-dir", str(tmp_path))

    assert code == 2
    assert f"Could not use {tmp_path / 'run.json'}.\nFound: the disk's own words\nHint: " in err
    assert "proxy" not in err
    assert "Traceback" not in err


def test_folder_for_runs_below_a_file_is_one_clear_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()

    code, err = said(
        capfd, monkeypatch, "run", "--only", "01", "--quick", "--runs-dir", str(tmp_path / "file" / "runs")
    )

    assert code == 2
    assert "Not a directory" in err


def test_control_characters_of_an_error_never_reach_the_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, err = said(capfd, monkeypatch, "run", "-p", "A\x1b[31m", "1")

    assert "\x1b" not in err
    assert "A\N{REPLACEMENT CHARACTER}[31m" in err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["ensemblekit", "--debug", "lint", str(tmp_path / "nowhere")])
    monkeypatch.setattr(program, "_listen_to_signals", lambda: None)

    with pytest.raises(KitError, match="/nowhere"):
        main()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(name: str) -> None:
    done = CliRunner().invoke(app, [name, "--help"])

    assert done.exit_code == 0, done.output
    assert "Usage: " in done.output


def test_help_of_the_program_names_every_command() -> None:
    done = CliRunner().invoke(app, ["--help"])

    assert [name for name in COMMANDS if f"\n  {name} " not in done.output] == []


def test_shared_options_are_declared_once() -> None:
    declared: dict[str, set[int]] = {}
    for name in ("serve", "matrix", "workaround", "run"):
        command = app.get_command(click.Context(app), name)
        assert command is not None
        inner = command.commands.values() if isinstance(command, click.Group) else [command]
        for one in inner:
            for option in one.params:
                declared.setdefault(option.opts[0], set()).add(hash(getattr(option, "help", "")))
    assert len(declared["--container-engine"]) == 1


@pytest.mark.parametrize(
    ("words", "strangers"),
    [
        (["probe", "24.08"], (*NOT_NEEDED, "rich")),
        (["explain", str(LOG)], (*NOT_NEEDED, "rich")),
        (["lint", str(REPOSITORY)], NOT_NEEDED),
        (["lint", str(REPOSITORY), "--json"], (*NOT_NEEDED, "rich")),
        (["--help"], (*NOT_NEEDED, "rich")),
    ],
)
def test_small_commands_import_only_what_they_need(words: list[str], strangers: tuple[str, ...]) -> None:
    """Such a command takes a third of a second, most of it imports."""
    code = (
        "import sys, json; sys.argv = ['ensemblekit', *json.loads(sys.argv[1])]\n"
        "from ensemblekit.cli.main import main\n"
        "try: main()\n"
        "finally: print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(words)], capture_output=True, text=True, check=False)

    loaded = done.stderr.splitlines()[-1]
    assert [name for name in strangers if f"'{name}'" in loaded] == []


def test_module_is_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ensemblekit.cli.main", "releases"], capture_output=True, text=True, check=True
    )

    assert "24.08" in done.stdout
