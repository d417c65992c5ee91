# SPDX-License-Identifier: Apache-2.0
"""The set-up script: what it chooses, what it refuses and in which words. Nothing is installed here."""

import ast
import fcntl
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from ensemblekit.gpu import MIN_DRIVER
from ensemblekit.paths import repo_root
from setup import environment, index, installer, locks, machine, messages, options, pythons
from tests.fake_nvidia_smi import FakeNvidiaSmi

SCRIPT = repo_root() / "scripts" / "bootstrap.py"
RUN_TIMEOUT_S = 30
WARM_GOAL_S = 0.3


@pytest.fixture(autouse=True)
def machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, and no environment of the tests' own."""
    monkeypatch.setenv("ENSEMBLEKIT_TEST_GPU", "0")
    monkeypatch.delenv("ENSEMBLEKIT_VENV", raising=False)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> messages.Log:
    """A log of a set-up, in a folder of the test's own."""
    monkeypatch.setattr(messages, "ROOT", str(tmp_path))
    return messages.Log()


@pytest.fixture
def closed_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package index that does not answer, and an empty cache."""
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("ENSEMBLEKIT_CACHE", str(tmp_path / "cache"))


def run_script(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the script as a user would."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, "ENSEMBLEKIT_TEST_GPU": "0", **environment},
        capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip


def a_fake_python(folder: Path, name: str, version: str, *, venv: bool = True, libpython: bool = True) -> str:
    """An executable that answers the script's question as Python `version` would."""
    short = ".".join(version.split(".")[:2])
    answer = json.dumps(
        {"path": str(folder / name), "short": short, "version": version, "venv": venv, "libpython": libpython}
    )
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{answer}'\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("path", [SCRIPT, *(SCRIPT.parent / "setup").glob("*.py")], ids=lambda path: path.name)
def test_script_parses_with_the_grammar_of_python_3_6(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 6))


@pytest.mark.parametrize(
    ("words", "engine", "layers"),
    [
        pytest.param(["--quick"], "base", ["base"], id="quick"),
        pytest.param([], "cpu", ["base", "lab", "cpu"], id="full"),
        pytest.param(["--dev"], "cpu", ["base", "lab", "cpu", "hub", "dev"], id="tests"),
        pytest.param(["--quick", "--lab"], "base", ["base", "lab"], id="quick-lab"),
        pytest.param(["--exec", "ensemblekit", "run", "--quick"], "base", ["base"], id="run-quick"),
        pytest.param(["--exec", "ensemblekit", "run", "--help"], "base", ["base"], id="run-help"),
        pytest.param(["--exec", "ensemblekit", "run", "--only", "01"], "cpu", ["base", "lab", "cpu"], id="run-full"),
        pytest.param(["--exec", "ensemblekit", "run", "-p", "ENGINE", "stand-in"], "base", ["base"], id="stand-in"),
        pytest.param(["--lab", "--exec", "ensemblekit", "lab", "--quick"], "base", ["base", "lab"], id="lab-quick"),
        pytest.param(["--lab", "--exec", "ensemblekit", "lab"], "cpu", ["base", "lab", "cpu"], id="lab-full"),
        pytest.param(["--exec", "jupyter", "lab", "--help"], "cpu", ["base", "lab", "cpu"], id="other-program"),
    ],
)
def test_options_choose_engine_and_layers(words: list[str], engine: str, layers: list[str]) -> None:
    asked, _ = options.parse(words)

    assert options.choose_engine(asked, gpu=False) == engine
    assert options.wanted_layers(engine, asked) == layers


@pytest.mark.parametrize(
    ("words", "engine", "folder"),
    [
        pytest.param([], "cuda", ".venv", id="gpu-machine"),
        pytest.param(["--exec", "ensemblekit", "run", "--device", "cpu"], "cpu", ".venv-cpu", id="cpu-asked-for"),
        pytest.param(["--exec", "ensemblekit", "run", "--device=cpu"], "cpu", ".venv-cpu", id="cpu-with-equals"),
        pytest.param(
            ["--exec", "ensemblekit", "run", "-p", "DEVICE", "cpu"], "cpu", ".venv-cpu", id="cpu-as-parameter"
        ),
        pytest.param(["--quick"], "base", ".venv", id="quick"),
    ],
)
def test_machine_with_gpu_gets_the_cuda_environment(words: list[str], engine: str, folder: str) -> None:
    asked, _ = options.parse(words)

    assert options.choose_engine(asked, gpu=True) == engine
    assert environment.venv_folder(engine, True) == str(repo_root() / folder)


def test_device_cuda_without_gpu_is_refused_with_a_hint() -> None:
    asked, _ = options.parse(["--device", "cuda"])

    with pytest.raises(messages.SetupError, match=r"(?s)no NVIDIA GPU is visible.*Hint: .*--device cpu"):
        options.choose_engine(asked, gpu=False)


def test_unknown_device_names_the_known_ones() -> None:
    asked, _ = options.parse(["--device", "tpu"])

    with pytest.raises(messages.SetupError, match="auto, cpu and cuda"):
        options.choose_engine(asked, gpu=False)


def test_old_glibc_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    venv = tmp_path / "venv"

    done = run_script("--quick", ENSEMBLEKIT_TEST_GLIBC="glibc 2.31", ENSEMBLEKIT_VENV=str(venv))

    assert done.returncode == 1
    assert "Found: glibc 2.31; its wheels need glibc 2.35 or newer" in done.stderr
    assert "Hint: use Ubuntu 22.04" in done.stderr
    assert "Traceback" not in done.stderr
    assert not venv.exists()


def test_only_old_pythons_are_refused_with_install_commands(
    log: messages.Log, closed_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", a_fake_python(tmp_path, "python3", "3.9.18"))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(messages.SetupError) as error:
        pythons.find_python(False, log)

    text = str(error.value)
    assert text.startswith("Could not find Python 3.11 or 3.12.\nFound: ")
    assert "python3 (3.9.18); no python3.11 and no python3.12 on the PATH" in text
    assert "Hint: install one: `sudo apt install python3.11 python3.11-venv libpython3.11`" in text


def test_old_python_takes_a_newer_one_from_the_path(
    log: messages.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", a_fake_python(tmp_path, "python3", "3.9.18"))
    newer = a_fake_python(tmp_path, "python3.11", "3.11.9")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert pythons.find_python(False, log)["path"] == newer


def test_two_names_of_one_python_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = a_fake_python(tmp_path, "python3.11", "3.11.2")
    (tmp_path / "python3").symlink_to(real)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    monkeypatch.setenv("PATH", str(tmp_path))

    assert pythons.candidate_pythons(False) == [str(tmp_path / "python3")]


@pytest.mark.parametrize("gpu", [False, True])
def test_python_of_a_bundle_is_tried_before_those_of_the_system(
    log: messages.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    a_fake_python(tmp_path, "python3.12", "3.12.3")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pythons, "BROUGHT", a_fake_python(tmp_path, "brought", "3.12.1"))

    assert pythons.find_python(gpu, log)["version"] == "3.12.1"


def test_standalone_python_that_does_not_start_is_refused(
    log: messages.Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", a_fake_python(tmp_path, "python3", "3.13.5"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(pythons, "standalone_python", lambda why, log: str(tmp_path / "missing"))

    with pytest.raises(messages.SetupError, match=r"python3 \(3\.13\.5\).*missing does not start"):
        pythons.find_python(False, log)


def test_uv_comes_from_the_folder_of_find_links_without_an_index(
    closed_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "uv-9.9-py3-none-manylinux_2_17_x86_64.whl"
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / name).write_bytes(b"the wheel")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    pin = "uv==9.9 --hash=sha256:" + hashlib.sha256(b"the wheel").hexdigest()

    assert index.fetch_locked(pin, str(tmp_path)) == str(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"the wheel"
    with pytest.raises(ValueError, match="another file than the locked one"):
        index.fetch_locked("uv==9.9 --hash=sha256:" + "0" * 64, str(tmp_path))


def test_python_without_ensurepip_names_the_package_to_install(
    log: messages.Log, closed_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", a_fake_python(tmp_path, "python3", "3.11.2", venv=False))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(messages.SetupError, match=r"(?s)ensurepip.*Hint: sudo apt install python3\.11-venv"):
        pythons.find_python(False, log)


def test_folder_that_the_kit_did_not_make_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "venv" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")

    done = run_script("--quick", ENSEMBLEKIT_VENV=str(precious.parent))

    assert done.returncode == 1
    assert "a folder of that name which this kit did not make" in done.stderr
    assert precious.read_text() == "mine"


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({"ready": False}, id="killed-while-installing"),
        pytest.param({"ready": True, "folder": "/elsewhere"}, id="moved"),
        pytest.param({}, id="no-state"),
    ],
)
def test_half_made_environment_is_not_usable(tmp_path: Path, state: dict[str, object]) -> None:
    environment.write_state(str(tmp_path), state)

    assert not environment.is_usable(str(tmp_path), environment.read_state(str(tmp_path)))


def test_environment_without_its_program_is_not_complete(tmp_path: Path) -> None:
    environment.write_state(str(tmp_path), {"layers": {"base": "hash", "package": "hash"}})

    assert environment.read_state(str(tmp_path)) == {"layers": {"base": "hash"}}


def test_checkout_beyond_ascii_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    """As it is after a clone: the scripts and the locks are there, and no environment."""
    checkout = tmp_path / "jürgen" / "kit"
    for name in ("scripts", "env/locks"):
        ignored = shutil.ignore_patterns("ensemblekit", "__pycache__")
        shutil.copytree(repo_root() / name, checkout / name, ignore=ignored)
    shutil.copy(repo_root() / "pyproject.toml", checkout)
    before = set(checkout.rglob("*"))

    done = subprocess.run(
        [sys.executable, "-B", checkout / "scripts" / "bootstrap.py", "--quick"],
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 1
    assert f"Could not use a checkout below {checkout}.\nFound: letters that are not ASCII" in done.stderr
    assert "Hint: move the checkout" in done.stderr
    assert set(checkout.rglob("*")) == before


def test_changed_lock_is_noticed() -> None:
    state = {"layers": {"base": locks.fingerprint("base"), "lab": "the hash of an older file"}}

    assert environment.missing_layers(state, ["base", "lab", "cpu"]) == ["lab", "cpu"]


def test_second_set_up_waits_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'w');"
         "fcntl.flock(f, fcntl.LOCK_EX);"
         "print('held', flush=True); time.sleep(1)", str(tmp_path / "venv.lock")],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout
    holder.stdout.readline()
    began = time.monotonic()

    with environment.exclusive(str(tmp_path / "venv")):
        waited = time.monotonic() - began

    holder.communicate()
    assert waited > 0.5
    assert "for the other set-up in this folder" in capsys.readouterr().err


def test_lock_outlives_a_killed_set_up_while_its_pip_runs(tmp_path: Path) -> None:
    with environment.exclusive(str(tmp_path / "venv")):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    with (tmp_path / "venv.lock").open("w") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.kill()
        child.wait()
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_failing_command_ends_in_the_log_and_a_hint(log: messages.Log) -> None:
    with pytest.raises(messages.SetupError) as error:
        log.run(["sh", "-c", "echo no such index; exit 7"], "install the packages", "is the index reachable?")

    text = str(error.value)
    assert text.startswith("Could not install the packages.\nFound: exit code 7\n")
    assert "no such index" in text
    assert f"Log: {log.path}" in text
    assert text.endswith("Hint: is the index reachable?")


def test_torch_comes_from_the_index_that_the_user_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(installer.TORCH_INDEX_VARIABLE, "https://mirror.example/cpu")

    assert installer.torch_index() == ["--extra-index-url", "https://mirror.example/cpu"]


def test_lock_comments_name_torch_and_what_is_absent() -> None:
    notes = locks.lock_notes("cpu")

    assert notes["torch"] == ["torch==2.13.0"]
    assert set(notes["absent"]) == {"torchvision", "torchaudio", "torchcodec", "opencv-python-headless"}


def test_second_run_does_nothing_that_takes_more_than_a_third_of_a_second() -> None:
    state = environment.read_state(str(repo_root() / ".venv"))
    if not state.get("ready") or environment.missing_layers(state, ["base", "package"]):
        pytest.skip("no .venv made by scripts/run from the locks as they are now")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    done = run_script("--quick", "--exec", "python", "-c", "print('started')")

    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout == "started\n"
    assert done.stderr == ""
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < WARM_GOAL_S * 2  # of the processor


@pytest.mark.parametrize(
    ("listed", "hidden"), [("", True), ("-1", True), ("NoDevFiles", True), ("0", False), ("GPU-5d5ba0d6,1", False)]
)
def test_gpus_hidden_is_what_cuda_would_hide(monkeypatch: pytest.MonkeyPatch, listed: str, hidden: bool) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)

    assert machine.gpus_hidden() is hidden


def test_gpus_hidden_unset_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    assert not machine.gpus_hidden()


@pytest.mark.parametrize("driver", ["535.104.05", "470.82.01"])
def test_old_driver_of_a_fake_nvidia_smi_is_refused_before_anything_is_made(tmp_path: Path, driver: str) -> None:
    folder = FakeNvidiaSmi(driver=driver).install(tmp_path / "bin")
    venv = tmp_path / "venv"

    done = run_script(
        ENSEMBLEKIT_TEST_GPU="1", ENSEMBLEKIT_VENV=str(venv), PATH=f"{folder}{os.pathsep}{os.environ['PATH']}",
        CUDA_VISIBLE_DEVICES="0",
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Could not set up the GPU environment.",
        f"Found: driver {driver}; the locked torch (CUDA 13) needs 580 or newer",
        "Hint: update NVIDIA's driver, or use `--device cpu`",
    ]
    assert not venv.exists()


def test_old_driver_of_a_fake_nvidia_smi_does_not_matter_for_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = FakeNvidiaSmi(driver="535.104.05").install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    machine.check_driver("cpu")
    with pytest.raises(messages.SetupError):
        machine.check_driver("cuda")


# both forms of the first line of /proc/driver/nvidia/version, of the closed and of the open kernel module
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)\n"


@pytest.mark.parametrize(("text", "version"), [(CLOSED, "535.104.05"), (OPEN, "580.65.06"), ("odd\n", None)])
def test_driver_version_without_nvidia_smi_is_read_from_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, version: str | None
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(machine, "DRIVER_VERSION", str(tmp_path / "version"))

    assert machine.driver_version() is None
    (tmp_path / "version").write_text(text + "GCC version:  gcc version 12.3.0\n")
    assert machine.driver_version() == version


def test_least_driver_is_the_same_in_the_kit() -> None:
    assert machine.MIN_DRIVER == MIN_DRIVER


def test_changed_wheel_is_refused_with_one_clear_error(log: messages.Log, tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    source = ["--no-index", "--find-links", str(wheel.parent), "--target", str(tmp_path / "target")]

    with pytest.raises(messages.SetupError) as error:
        installer.Installer(sys.prefix, log).install_locked(
            ["tiny==1.0 --hash=sha256:" + "0" * 64], source, "install the locked packages (base)"
        )

    text = str(error.value)
    assert text.startswith("Could not install the locked packages (base).\n")
    assert "DO NOT MATCH THE HASHES" in text
    assert text.endswith("Hint: " + installer.CHANGED_HINT)
    assert not (tmp_path / "target").exists()
