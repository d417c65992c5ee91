# SPDX-License-Identifier: Apache-2.0
"""What a machine lacks: disk, memory, a network, a clock that goes forward. One clear error, or no difference."""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from ensemblekit.paths import repo_root
from ensemblekit.servers import supervised
from tests.faults.conftest import LONG, Report

PROGRAM = Path(sys.executable).with_name("ensemblekit")
CHECKOUT = repo_root()
ENDS_S = 90.0
FETCH = (
    "import logging\nfrom ensemblekit.assets import store\nfrom ensemblekit.errors import FetchError\n"
    "store.DOWNLOAD_TIMEOUT_S = 3\n"
    "try:\n    store.fetch_wheel('nothing', '1.0', sha256='0' * 64)\n"
    "except FetchError as error:\n    print(error)\n"
)
# too little for numpy, or within the load of a library, which is another error each few MiB; enough
MEMORY_MIB = (100, 150, 1000)
LITTLE_MEMORY = [("lint", "model_repo"), ("doctor", "no_such_folder")]
OWN_MOUNTS = "unshare --mount --propagation private"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run_kit(
    *words: str, before: str = "", variables: Mapping[str, str] | None = None, limit: Callable[[], None] | None = None
) -> tuple[int, str]:
    """Run the command line, after shell commands in mounts of its own, and return exit code and all that it said."""
    command = [str(PROGRAM), *words]
    if before:
        command = [*OWN_MOUNTS.split(), "sh", "-ec", f'{before}\nexec "$@"', "sh", *command]
    environment = os.environ | (variables or {})
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=ENDS_S, preexec_fn=limit
    )
    return done.returncode, done.stdout + done.stderr


def is_clear(said: str) -> bool:
    return "Traceback" not in said and "Could not " in said and "Found: " in said and "Hint: " in said


def read_only(*folders: Path) -> str:
    """Return shell commands after which nothing can be written below these folders."""
    return "\n".join(f"mount --bind {one} {one}; mount -o remount,bind,ro {one}" for one in folders if one.is_dir())


@pytest.fixture
def mounts() -> None:
    """Skip where this user may not mount."""
    if subprocess.run([*OWN_MOUNTS.split(), "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of its own for a process here")


READ_ONLY = [("run", "--quick", "--only", "01")]
if LONG:
    READ_ONLY += [("serve", "--engine", "stand-in"), ("doctor", "model_repo")]
TEMPORARY = tuple(map(Path, ("/tmp", "/var/tmp", "/usr/tmp")))


@pytest.mark.parametrize("words", [("run", "--quick", "--only", "01"), ("probe", "24.08")], ids=["run", "probe"])
def test_no_temporary_folder_is_one_clear_error(
    words: tuple[str, ...], mounts: None, report: Report, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = read_only(*TEMPORARY, CHECKOUT) + "\nmount -t tmpfs tmpfs /dev/shm\ncd /"
    before += f"\nmount --bind {CHECKOUT} {CHECKOUT}; mount -o remount,bind,ro {CHECKOUT}\ncd {CHECKOUT}"
    runs = ("--runs-dir", "/dev/shm/runs") if words[0] == "run" else ()

    code, said = run_kit(*words, *runs, before=before)

    held = code != 0 and is_clear(said) and "TMPDIR" in said
    report.count("machine: no temporary folder", held)
    assert held, said


@pytest.mark.parametrize("words", READ_ONLY)
def test_read_only_checkout_is_one_clear_error(words: tuple[str, ...], mounts: None, report: Report) -> None:
    code, said = run_kit(*words, before=f"{read_only(CHECKOUT)}\ncd {CHECKOUT}")

    held = code == 2 and is_clear(said) and "Found: Read-only file system" in said
    report.count("machine: read-only checkout", held)
    assert held, said


def test_set_up_of_a_read_only_checkout_is_one_clear_error(mounts: None, report: Report, tmp_path: Path) -> None:
    before = f"{read_only(CHECKOUT)}\nset -- '{sys.executable}' -B {CHECKOUT}/scripts/bootstrap.py --quick"

    code, said = run_kit(before=before, variables={"ENSEMBLEKIT_VENV": str(tmp_path / "venv")})

    held = code == 1 and is_clear(said) and "The checkout must be writable" in said
    report.count("machine: read-only checkout", held)
    assert held, said


def test_checkout_of_another_owner_is_one_clear_error(mounts: None, report: Report, tmp_path: Path) -> None:
    """The folder for runs belongs to somebody else, and root is without its right to write everywhere."""
    (tmp_path / "runs").mkdir(mode=0o755)
    before = f"chown 65534 {tmp_path}/runs; mount --bind {tmp_path}/runs {CHECKOUT}/runs\n"
    before += 'set -- setpriv --bounding-set=-dac_override,-dac_read_search "$@"'

    code, said = run_kit("run", "--quick", "--only", "01", before=before)

    held = code == 2 and is_clear(said) and "Permission denied" in said
    report.count("machine: checkout of another owner", held)
    assert held, said


@pytest.mark.parametrize("left_kib", [0, 8, 40])
def test_full_temporary_folder_is_told_or_not_needed(
    left_kib: int, mounts: None, report: Report, tmp_path: Path
) -> None:
    place = tmp_path / "full"
    place.mkdir()
    before = f"mount -t tmpfs -o size=200k tmpfs {place}\nhead -c {200 - left_kib}K /dev/zero > {place}/fill"

    code, said = run_kit("probe", "24.08", before=before, variables={"TMPDIR": str(place)})

    held = "Traceback" not in said and ("verdict:" in said or (code != 0 and is_clear(said)))
    report.count("machine: full temporary folder", held)
    assert held, said


@pytest.mark.parametrize("words", LITTLE_MEMORY, ids=" ".join)
@pytest.mark.parametrize("mib", MEMORY_MIB)
def test_little_memory_is_one_clear_error_or_enough(mib: int, words: tuple[str, ...], report: Report) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))

    code, said = run_kit(*words, limit=limit)

    last = said.splitlines()[-3:]  # a library writes on its own before
    held = ("Traceback" not in said and code in (0, 1)) or (code != 0 and is_clear("\n".join(last)))
    report.count("machine: little memory", held)
    assert held, f"{mib} MiB, exit code {code}:\n{said[-3000:]}"


def test_clock_that_jumps_back_changes_no_wait(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    """A fake of time.time alone, back by an hour at each look: what waits goes by the monotonic clock."""
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600 * next(jumps))
    began = time.monotonic()

    found = supervised.wait_until(lambda: None, 0.5)

    held = found is None and time.monotonic() - began < 2
    report.count("machine: a clock that jumps back", held)
    assert held


@pytest.fixture
def stalling() -> Iterator[str]:
    """A mirror that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = list[socket.socket]()

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple/"
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


@pytest.mark.parametrize("network", ["dead proxy", "no name", "stalls"])
def test_bad_network_is_one_clear_error_in_time(network: str, stalling: str, report: Report, tmp_path: Path) -> None:
    settings = {
        "dead proxy": {"PIP_INDEX_URL": "http://127.0.0.1:1/simple/", "PIP_PROXY": "http://127.0.0.1:9"},
        "no name": {"PIP_INDEX_URL": "http://mirror.invalid/simple/"},
        "stalls": {"PIP_INDEX_URL": stalling},
    }[network]
    settings |= {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0", "ENSEMBLEKIT_CACHE": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")} | settings

    command = [sys.executable, "-c", FETCH]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=ENDS_S)

    wheels = [path.name for path in (tmp_path / "wheels").iterdir() if path.suffix != ".log"]
    said = done.stdout + done.stderr
    held = is_clear(said) and "proxy or mirror" in said and not wheels and done.returncode != -signal.SIGKILL
    report.count(f"machine: network, {network}", held)
    assert held, said
