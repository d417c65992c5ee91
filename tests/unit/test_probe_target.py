# SPDX-License-Identifier: Apache-2.0
"""What a probe's target means, and one clear answer for each that is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ensemblekit.diagnose.probe.files import SCHEDULER, reads_as_ensembles
from ensemblekit.diagnose.probe.start import probe_binary
from ensemblekit.diagnose.probe.target import kind_of, probe_target
from ensemblekit.errors import KitError, ParameterError, ServerExited, ServerNotReady, UnsupportedMachine
from ensemblekit.servers.emulation import PLATFORM_CONSTANT, REPLACED_CONSTANT


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("24.08", "release"),
        ("24.08/vllm-image", "release"),
        ("/opt/tritonserver", "disk"),
        ("./server", "disk"),
        ("127.0.0.1:8000", "url"),
        ("triton.example:8000", "url"),
        ("http://triton.example/", "url"),
        ("nvcr.io/nvidia/tritonserver:24.08-vllm-python-py3", "image"),
        ("localhost/ensemblekit/tritonserver:24.08-custom-build", "image"),
        ("localhost:5000/tritonserver", "image"),
        ("tritonserver", "image"),
    ],
)
def test_kind_of_target(target: str, kind: str) -> None:
    assert kind_of(target) == kind


@pytest.mark.parametrize("target", ["", "a b", "24.08/vllm-image/more words"])
def test_kind_of_nonsense_names_the_four_kinds(target: str) -> None:
    with pytest.raises(ParameterError, match="no release/flavour, no path, no image name and no URL"):
        kind_of(target)


def test_probe_unknown_release_lists_the_known() -> None:
    with pytest.raises(ParameterError, match=r"24\.07, 24\.08"):
        probe_target("19.01/vllm-image")


def test_probe_unknown_flavour_lists_the_known() -> None:
    with pytest.raises(ParameterError, match="base-plus-vllm"):
        probe_target("24.08/vanilla")


@pytest.fixture
def odd_paths(tmp_path: Path) -> Path:
    """A folder with what is no server."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 64)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    shutil.copy("/bin/true", tmp_path / "no-run-bit")
    (tmp_path / "no-run-bit").chmod(0o644)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "none of bin/tritonserver"),
        ("absent", "No such file"),
        ("text", "not a Linux program"),
        ("noise", "not a Linux program"),
        ("loop", "symbolic links"),
        ("no-run-bit", r"chmod \+x"),
    ],
)
def test_probe_odd_path_is_one_clear_answer(odd_paths: Path, name: str, words: str) -> None:
    with pytest.raises(UnsupportedMachine, match=words):
        probe_target(str(odd_paths / name))


def test_probe_static_needs_no_run_bit(odd_paths: Path) -> None:
    with pytest.raises(UnsupportedMachine, match="no libtritonserver beside"):
        probe_target(str(odd_paths / "no-run-bit"), static=True)


def test_probe_program_that_is_no_triton_says_how_it_ended() -> None:
    with pytest.raises(KitError, match=r"it ended after .* with exit code 0"):
        probe_target(str(Path(shutil.which("true") or "/bin/true").resolve()))


CORE = b"\0model_repository_manager.cc\0"


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        (CORE + SCHEDULER + PLATFORM_CONSTANT, True),
        (CORE + PLATFORM_CONSTANT, False),
        (CORE + SCHEDULER + REPLACED_CONSTANT, False),
        (b"another library", None),
    ],
    ids=["built-with", "built-without", "emulated", "not-a-core"],
)
def test_reads_as_ensembles_stand_in_library(tmp_path: Path, content: bytes, verdict: bool | None) -> None:
    library = tmp_path / "libtritonserver.so"
    library.write_bytes(content)

    assert reads_as_ensembles(library)[0] is verdict


UNREADABLE = """
import os, sys
from pathlib import Path
from ensemblekit.diagnose.probe.files import find_server
from ensemblekit.errors import KitError
os.setegid(65534)
os.seteuid(65534)
try:
    find_server(Path(sys.argv[1]))
except KitError as error:
    print(error.found)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to become another user")
def test_probe_folder_without_read_permission_says_so(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, "-c", UNREADABLE, tmp_path / "server"], capture_output=True, text=True, check=False
    )

    assert "Permission denied" in done.stdout or "no right to look" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "end", "starts"),
    [
        ("", "kill -SEGV $$", 3),
        ("", "kill -ABRT $$", 3),
        ("failed to listen: Address already in use", "exit 1", 3),
        ("unrecognized option '--allow-grpc=false'", "exit 1", 2),
        ("no model", "exit 1", 1),
    ],
    ids=["crash", "abort", "port-taken", "unknown-option", "end"],
)
def test_stand_in_program_that_ends_is_started_again_where_that_helps(
    tmp_path: Path, words: str, end: str, starts: int
) -> None:
    program = tmp_path / "tritonserver"
    program.write_text(f'#!/bin/sh\necho start >> {tmp_path}/starts\necho "{words}"\n{end}\n')
    program.chmod(0o755)

    with pytest.raises(ServerExited):
        probe_binary(program, tmp_path / "probe", environment={})

    assert len((tmp_path / "starts").read_text().splitlines()) == starts


def test_stand_in_program_that_writes_without_end_is_ended_before_it_fills_the_disk(tmp_path: Path) -> None:
    program = tmp_path / "tritonserver"
    program.write_text('#!/bin/sh\nwhile :; do printf "no triton $0 $0 $0 $0"; done\n')
    program.chmod(0o755)
    with pytest.raises(ServerNotReady, match="wrote 16 MiB and did not answer") as caught:
        probe_binary(program, tmp_path / "probe", environment={})

    assert len(str(caught.value)) < 3000
    assert not [one for one in psutil.process_iter() if str(tmp_path) in " ".join(_command(one))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
