# SPDX-License-Identifier: Apache-2.0
"""What lint says to something that is no model repository: one clear answer each, and exit code 2."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.errors import ParameterError
from tests.conftest import DATA

LOG_BYTES = 200 * 10**6  # a sparse file: it takes no room
NOBODY = 65534


def refusal(path: Path) -> str:
    """Return the error's text."""
    with pytest.raises(ParameterError) as caught:
        lint_repository(path)
    return str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == (
        f"Could not lint the model repository {tmp_path / 'none'}.\n"
        "Found: no such folder\n"
        "Hint: check the path; it is the one for --model-repository"
    )


def test_binary_file(tmp_path: Path) -> None:
    file = tmp_path / "libtritonserver.so"
    file.write_bytes(b"\x7fELF\0\1")

    assert refusal(file).endswith(
        "Found: a file of 6 bytes, not a folder\nHint: give the folder that holds one folder per model"
    )


def test_log_of_200_megabytes_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    with file.open("wb") as log:
        log.truncate(LOG_BYTES)

    assert refusal(file).endswith(
        "Found: a file of 200,000,000 bytes, not a folder\n"
        f"Hint: for a log there is `ensemblekit explain {file}`; lint wants the folder that holds the models"
    )


def test_large_file_under_the_name_of_a_config_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "model" / "1").mkdir(parents=True)
    with (tmp_path / "model" / "config.pbtxt").open("wb") as config:
        config.truncate(LOG_BYTES)

    (finding,) = lint_repository(tmp_path).findings

    assert finding.code == "E116"
    assert finding.why.startswith("200,000,000 bytes: too large for a config, some other file.")


def test_config_that_is_binary_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "config.pbtxt").write_bytes(b"\x0a\x03abc\0\xff")

    (finding,) = lint_repository(tmp_path).findings

    assert (finding.code, finding.line) == ("E116", None)
    assert finding.why.startswith("binary data: this is no text file.")


def test_config_with_a_syntax_error_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "config.pbtxt").write_text('backend: "python"\ninput [ { name: "IN" ]\n')

    (finding,) = lint_repository(tmp_path).findings

    assert (finding.code, finding.line) == ("E116", 2)
    assert finding.place == f"{tmp_path / 'model' / 'config.pbtxt'}:2"
    assert finding.says == f"failed to read text proto from {tmp_path / 'model' / 'config.pbtxt'}"


@pytest.mark.parametrize("text", ["input [\n", 'name: "', "\n\ninput {", "${"], ids=repr)
def test_config_that_ends_too_early_is_a_finding(text: str, tmp_path: Path) -> None:
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "config.pbtxt").write_text(text)

    (finding,) = lint_repository(tmp_path).findings

    assert finding.code == ("E117" if text == "${" else "E116")


def test_empty_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith(
        "Found: an empty folder\nHint: a model repository holds one folder per model, each with its config.pbtxt"
    )


def test_folder_of_files_only(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()

    assert "Found: 1 files and no folder" in refusal(tmp_path)


def test_folder_of_one_model_names_the_folder_above() -> None:
    model = DATA / "report_repository" / "ensemble"

    assert f"Hint: give the folder above it: `ensemblekit lint {DATA / 'report_repository'}`" in refusal(model)


def test_config_file_itself_names_the_repository() -> None:
    text = refusal(DATA / "report_repository" / "ensemble" / "config.pbtxt")

    assert f"give the repository, two folders up: `ensemblekit lint {DATA / 'report_repository'}`" in text


def test_link_to_itself(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)

    assert refusal(loop).endswith(
        "Found: Too many levels of symbolic links\nHint: see what is there: `ls -ld` on each part"
    )


def test_link_back_to_the_repository_within_a_model_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "1" / "model.py").touch()
    (tmp_path / "model" / "config.pbtxt").write_text('backend: "python"\n')
    (tmp_path / "model" / "again").symlink_to(tmp_path)

    assert not lint_repository(tmp_path).findings


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("part", ["", "model", "model/config.pbtxt"], ids=["repository", "model", "config"])
def test_repository_without_the_right_to_read(part: str, open_folder: Path) -> None:
    (open_folder / "models" / "model" / "1").mkdir(parents=True)
    (open_folder / "models" / "model" / "config.pbtxt").write_text('backend: "python"\n')
    closed = open_folder / "models" / part
    closed.chmod(0)
    text = _lint_as_nobody(open_folder / "models")
    closed.chmod(0o755)

    assert f"Could not lint the model repository {closed}." in text
    assert "Found: permission denied for user" in text
    assert f"Hint: give this user the right to read it: `chmod -R a+rX {closed}`; the server needs it too" in text


# The tests may run as root, whom no mode stops: the process changes its user once everything is imported.
_PROGRAM = """
import os, sys
from pathlib import Path
from ensemblekit.errors import ParameterError
from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.releases import list_releases
list_releases()
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({nobody})
    os.setuid({nobody})
try:
    print(lint_repository(Path(sys.argv[1])).findings)
except ParameterError as error:
    print(error)
"""


def _lint_as_nobody(repository: Path) -> str:
    program = _PROGRAM.format(nobody=NOBODY)
    return subprocess.run([sys.executable, "-c", program, str(repository)], capture_output=True, text=True).stdout


def test_command_answers_unusable_input_with_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ensemblekit.cli.main", "lint", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert "Found: an empty folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--flavour", "vllm"], ["--release", "23.01"]], ids=["flavour", "release"])
def test_command_with_an_unknown_target_names_the_known_ones(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ensemblekit.cli.main", "lint", str(DATA / "report_repository"), *words],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "vllm-image, base-plus-vllm" in done.stderr or "24.07, 24.08" in done.stderr
