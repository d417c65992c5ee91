# SPDX-License-Identifier: Apache-2.0
"""What lint says to something that is no model repository: one clear answer each, and exit code 2."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.diagnose.lint.fix import corrections
from ensemblekit.errors import ParameterError
from ensemblekit.releases import every_release
from tests.conftest import DATA

LOG_BYTES = 200 * 10**6  # a sparse file: it takes no room
NOBODY = 65534


def _command(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ensemblekit.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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


def _model(folder: Path, name: str = "model", config: str = 'backend: "python"\n') -> Path:
    """Make the folder of a model with one version, and return it."""
    (folder / name / "1").mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(config)
    return folder / name


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [_pipe, _zeros])
@pytest.mark.parametrize(
    ("file", "config", "code"),
    [
        ("config.pbtxt", "", "E116"),
        ("1/model.py", 'backend: "python"\n', "E215"),
        ("1/model.json", 'backend: "vllm"\n', "E219"),
        ("1/model.onnx", 'backend: "onnxruntime"\n', "S422"),
        ("labels.txt", 'platform: "ensemble"\noutput [ { name: "OUT" label_filename: "labels.txt" } ]\n', "E107"),
    ],
    ids=["config", "python", "vllm", "onnx", "labels"],
)
def test_pipe_or_device_is_a_finding_and_is_not_read(
    file: str, config: str, code: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    model = _model(tmp_path, config=config)
    (model / file).unlink(missing_ok=True)
    make(model / file)

    report = lint_repository(tmp_path)

    assert code in {finding.code for finding in report.errors}
    assert not corrections(report)


def test_pipe_in_the_place_of_a_label_file(tmp_path: Path) -> None:
    model = _model(tmp_path, config=LABELS)
    (model / "1" / "model.py").touch()
    os.mkfifo(model / "labels.txt")

    (finding,) = lint_repository(tmp_path).errors

    assert (finding.code, finding.line) == ("S423", 2)
    assert "a pipe, a socket or a device, no regular file" in finding.why


def test_code_that_is_too_large_is_not_read_and_the_report_says_so(tmp_path: Path) -> None:
    model = _model(tmp_path)
    with (model / "1" / "model.py").open("wb") as file:
        file.truncate(LOG_BYTES)

    report = lint_repository(tmp_path)

    assert report.unseen == ("model/1/model.py",)
    assert not report.errors


def test_code_nested_too_deep_is_no_traceback(tmp_path: Path) -> None:
    model = _model(tmp_path)
    (model / "1" / "model.py").write_text("(" * 10_000 + ")" * 10_000)

    assert {finding.code for finding in lint_repository(tmp_path).errors} <= {"E216"}


@pytest.mark.parametrize("target", ["nowhere", "loop"], ids=["broken", "circle"])
def test_link_that_leads_nowhere_in_the_place_of_a_file(target: str, tmp_path: Path) -> None:
    model = _model(tmp_path)
    (model / "1" / "model.py").symlink_to("model.py" if target == "loop" else target)

    (finding,) = lint_repository(tmp_path).errors

    assert finding.code == "E215"


LABELS = """backend: "python"
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]
"""
ENVIRONMENT = 'backend: "python"\nparameters { key: "EXECUTION_ENV_PATH" value { string_value: "%s" } }\n'


@pytest.mark.parametrize(
    ("config", "code", "severity"),
    [
        (LABELS, "S423", "error"),
        (ENVIRONMENT % "$$TRITON_MODEL_DIRECTORY/env.tar.gz", "S424", "error"),
        (ENVIRONMENT % "env.tar.gz", "S424", "warning"),
        (ENVIRONMENT % "/nowhere/env.tar.gz", "S424", "warning"),
        (ENVIRONMENT % "$$TRITON_MODEL_DIRECTORY", "S425", "error"),
        ('backend: "python"\ndefault_model_filename: "other.py"\n', "E215", "error"),
        # it leads out of the folder and back: Triton joins the path as it stands
        ('backend: "python"\ndefault_model_filename: "../../model/1/model.py"\n', "T315", "warning"),
        ('backend: "python"\ndefault_model_filename: "../../../secret"\n', "T315", "warning"),
        ('backend: "onnxruntime"\n', "S422", "error"),
        ('backend: "tensorrt"\ndefault_model_filename: "net.plan"\n', "S422", "error"),
        ('backend: "pytorch"\n', "S422", "error"),
        ('platform: "tensorflow_savedmodel"\n', "S422", "error"),
        ('backend: "dali"\n', "S422", "error"),
        ('backend: "vllm"\n', "E219", "error"),
    ],
)
def test_file_that_a_config_needs_is_looked_for(config: str, code: str, severity: str, tmp_path: Path) -> None:
    model = _model(tmp_path, config=config)
    (model / "1" / "model.py").touch()
    if "pytorch" in config:
        (model / "1" / "model.py").unlink()

    found = [(finding.code, finding.severity) for finding in lint_repository(tmp_path).findings]

    assert [entry for entry in found if entry[0] != "T306"] == [(code, severity)]


def test_pointer_of_git_lfs_is_no_model(tmp_path: Path) -> None:
    model = _model(tmp_path, config='backend: "onnxruntime"\n')
    (model / "1" / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")

    (finding,) = lint_repository(tmp_path).errors

    assert (finding.code, finding.fix) == ("S422", "Fetch it: `git lfs pull`.")


def test_what_was_not_looked_at_is_said_instead_of_an_all_clear(tmp_path: Path) -> None:
    model = _model(tmp_path, config='backend: "onnxruntime"\n')
    (model / "1" / "model.onnx").write_bytes(b"model")
    done = _command("lint", str(tmp_path))

    assert done.returncode == 0
    assert "not looked at: what backend onnxruntime makes of model" in done.stdout
    assert "a server should load all of it" not in done.stdout


def test_blank_in_the_name_of_a_python_model(tmp_path: Path) -> None:
    model = _model(tmp_path, name="my echo")
    (model / "1" / "model.py").touch()

    (finding,) = lint_repository(tmp_path).errors

    assert finding.code == "S456"
    assert 'The name "my echo" has a blank.' in finding.why


def test_release_that_is_not_in_the_table_gets_the_nearest() -> None:
    done = _command("lint", str(DATA / "report_repository"), "--release", "99.01")

    assert done.returncode == 2
    assert f"Hint: use the nearest, `--release {every_release()[-1].name}`" in done.stderr


@pytest.mark.parametrize(
    ("release", "codes"), [("25.02", []), ("25.03", ["T313"]), ("26.07", ["T313"])], ids=lambda value: str(value)
)
def test_release_that_was_not_run_says_so_and_its_image_has_the_backends_of_its_time(
    release: str, codes: list[str], tmp_path: Path
) -> None:
    model = _model(tmp_path, config='backend: "tensorflow"\nplatform: "tensorflow_graphdef"\n')
    (model / "1" / "model.graphdef").touch()

    report = lint_repository(tmp_path, release=release, flavour="base-plus-vllm")

    assert [finding.code for finding in report.findings] == codes
    assert any("documented, and was not run here" in sentence for sentence in report.assumed)


@pytest.mark.parametrize(("release", "known"), [("24.10", False), ("25.10", False), ("25.11", True)])
def test_field_that_a_release_does_not_know_is_a_finding(release: str, known: bool, tmp_path: Path) -> None:
    config = """platform: "ensemble"
ensemble_scheduling { max_inflight_requests: 2 step [ ] }
"""
    _model(tmp_path, config=config)

    codes = {finding.code for finding in lint_repository(tmp_path, release=release).errors}

    assert codes == {"E107" if known else "E116"}


def test_config_in_the_root_of_a_repository_is_not_read(tmp_path: Path) -> None:
    model = _model(tmp_path)
    (model / "1" / "model.py").touch()
    (tmp_path / "config.pbtxt").write_text('name: "pipe"\nplatform: "ensemble"\n')

    (finding,) = lint_repository(tmp_path).findings

    assert (finding.code, finding.file) == ("T314", tmp_path / "config.pbtxt")
    assert finding.fix.startswith("Move it to pipe/config.pbtxt and make pipe/1")


def test_key_that_stands_twice_is_the_cause_and_gets_no_other_name_proposed(tmp_path: Path) -> None:
    config = """platform: "ensemble"
input [ { name: "X" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 3 ] } ]
ensemble_scheduling {
  step [ { model_name: "split" model_version: -1
    input_map { key: "IN" value: "X" }
    output_map { key: "LEFT" value: "part_a" }
    output_map { key: "LEFT" value: "part_b" } },
  { model_name: "join" model_version: -1
    input_map { key: "A" value: "part_a" }
    input_map { key: "B" value: "part_b" }
    output_map { key: "OUT" value: "Y" } } ]
}
"""
    _model(tmp_path, "pipe", config)

    (finding,) = lint_repository(tmp_path).errors

    assert (finding.code, finding.line) == ("E112", 8)
    assert finding.why.startswith('In output_map the key "LEFT" stands twice, in lines 7 and 8')
    assert "Did you mean" not in finding.why


FIXABLE = 'name: "other"\r\nbackend: "python"\r\nmax_batch_size: 0\r\n'


def test_fix_keeps_the_line_ends(tmp_path: Path) -> None:
    model = _model(tmp_path)
    (model / "1" / "model.py").touch()
    (model / "config.pbtxt").write_bytes(FIXABLE.encode())

    done = _command("lint", str(tmp_path), "--fix", "--yes")

    assert done.returncode == 0
    assert (model / "config.pbtxt").read_bytes() == b'backend: "python"\r\nmax_batch_size: 0\r\n'


@pytest.mark.parametrize("linked", ["config.pbtxt", "model"])
def test_fix_does_not_write_through_a_link_and_says_so(linked: str, tmp_path: Path) -> None:
    model = _model(tmp_path / "elsewhere")
    (model / "1" / "model.py").touch()
    (model / "config.pbtxt").write_bytes(FIXABLE.encode())
    repository = tmp_path / "repository"
    if linked == "model":
        repository.mkdir()
        (repository / "model").symlink_to(model)
    else:
        (_model(repository) / "config.pbtxt").unlink()
        (repository / "model" / "config.pbtxt").symlink_to(model / "config.pbtxt")
        (repository / "model" / "1" / "model.py").touch()

    done = _command("lint", str(repository), "--fix", "--yes")

    assert done.returncode == 1
    assert "is not changed" in done.stderr
    assert "is a link" in done.stderr
    assert (model / "config.pbtxt").read_bytes() == FIXABLE.encode()


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
    done = _command("lint", str(tmp_path))

    assert done.returncode == 2
    assert done.stdout == ""
    assert "Found: an empty folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--flavour", "vllm"], ["--release", "23.01"]], ids=["flavour", "release"])
def test_command_with_an_unknown_target_names_the_known_ones(words: list[str]) -> None:
    done = _command("lint", str(DATA / "report_repository"), *words)

    assert done.returncode == 2
    assert "vllm-image, base-plus-vllm" in done.stderr or "24.07, 24.08" in done.stderr
