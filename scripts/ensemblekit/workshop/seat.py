# SPDX-License-Identifier: Apache-2.0
"""One participant's machine: fetch everything, prove it without a network, say in a line what is missing."""

import ctypes
import fcntl
import os
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import httpx

from ensemblekit.assets.embedding import ensure_embedding
from ensemblekit.assets.store import is_whole
from ensemblekit.assets.weights import ensure_checkpoint, pinned_checkpoint_folder
from ensemblekit.diagnose.preflight import preflight
from ensemblekit.errors import CheckFailed, KitError
from ensemblekit.paths import BUNDLE_FOLDER, repo_root
from ensemblekit.releases import has_ensembles, list_releases
from ensemblekit.servers.attach import AttachedServer
from ensemblekit.servers.embedded import has_server, server_tree
from ensemblekit.servers.ports import LOOPBACK, free_ports
from ensemblekit.servers.supervised import SupervisedProcess, wait_until

__all__ = ["prepare_seat", "what_is_missing"]

EXERCISE = "solutions/01"  # the first exercise with its answers: it passes only if all it needs is here
LAB_TIMEOUT_S, PROOF_TIMEOUT_S, ASK_TIMEOUT_S = 60.0, 600.0, 5.0
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # linux/sockios.h, linux/if.h
SHOWN_LINES = 12
UNREACHABLE = "http://127.0.0.1:9"  # nothing listens on the discard port
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")


def what_is_missing(*, quick: bool, url: str = "") -> str:
    """Return the first thing that this seat lacks with what to do, empty if it is ready. Fetches nothing.

    Args:
        quick: Whether the workshop goes without vLLM.
        url: The shared server, as it was given to this seat; empty: none.
    """
    return next(_lacking(quick, url), "")


def _lacking(quick: bool, url: str) -> Iterator[str]:
    setup = f"run `scripts/lab{' --quick' if quick else ''}` once, with a network"
    yield from (
        f"{row.name}: {row.found}; {row.without}" for row in preflight(network=False) if row.required and not row.fine
    )
    wanted = ("jupyterlab", "ipywidgets", "tritonclient") + (() if quick else ("vllm",))
    yield from (f"{name} is not installed: {setup}" for name in wanted if find_spec(name) is None)
    where = "" if (repo_root() / BUNDLE_FOLDER).is_dir() else ", with a network"
    fetch = f"run `ensemblekit workshop prepare{' --quick' if quick else ''}`{where}"
    for release in list_releases():
        if not has_server(release):
            yield f"the server of {release.name} is not in the cache: {fetch}"
    if not quick and not is_whole(pinned_checkpoint_folder()):
        yield f"the model is not in the cache: {fetch}"
    if url:
        try:
            AttachedServer.at(url).start()
        except KitError as error:
            yield f"the shared server: {error.found}; {error.hint}"


def prepare_seat(*, quick: bool, progress: Callable[[str], None]) -> str:
    """Fetch everything that the lessons and exercises need, then prove it with the network off.

    Args:
        quick: Whether the workshop goes without vLLM.
        progress: Called with a short line at the begin of each phase.

    Returns:
        How the network was switched off.

    Raises:
        FetchError: Something cannot be fetched.
        CheckFailed: Lab does not open, or the exercise does not run.
    """
    for release in list_releases():
        progress(f"the server of {release.name}")
        server_tree(release)
        if not has_ensembles(release, "vllm-image"):
            server_tree(release, ensembles=False)
    progress("the embedding model")
    ensure_embedding()
    if not quick:
        ensure_checkpoint(progress=progress)
    progress("with the network off: Lab opens, an exercise runs")
    alone = _can_leave_network()
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        preexec_fn=_leave_network if alone else None,
        env=os.environ | ({} if alone else dict.fromkeys(PROXIES, UNREACHABLE)) | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=PROOF_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise CheckFailed(
            "use this seat without a network",
            found=lines[-1] if lines else f"exit code {done.returncode}",
            hint="run `scripts/lab` once with a network, then prepare again",
            log_tail=lines[-SHOWN_LINES:],
        )
    return "in a network of its own" if alone else "through a proxy that is not there"


def _leave_network() -> None:
    """Give this process a network of its own with nothing but loopback; runs between fork and exec."""
    user, group = os.getuid(), os.getgid()
    flags = CLONE_NEWNET if user == 0 else CLONE_NEWNET | CLONE_NEWUSER
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sh", b"lo", 0))
        flag = struct.unpack("16sh", asked)[1] | IFF_UP
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flag))


def _can_leave_network() -> bool:
    try:
        return subprocess.run(["true"], preexec_fn=_leave_network, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):  # some systems let only root do so
        return False


def _prove() -> None:
    """Open Lab and run an exercise, here and now."""
    with tempfile.TemporaryDirectory() as name:
        _open_lab(Path(name))
        runs = ["--runs-dir", str(Path(name) / "runs")]
        command = [sys.executable, "-m", "ensemblekit.cli.main", "run", "--quick", "--only", EXERCISE, *runs]
        subprocess.run(command, check=True)


def _open_lab(folder: Path) -> None:
    (port,), token = free_ports(1), secrets.token_hex(8)
    options = [f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", "--no-browser", "--allow-root"]
    command = [sys.executable, "-m", "jupyter", "lab", *options, f"--notebook-dir={repo_root() / 'notebooks'}"]
    lab = SupervisedProcess(command, folder / "lab.log", environment=os.environ, folder=folder)

    def opened() -> bool | None:
        if lab.exit_code is not None:
            return False
        try:
            page = httpx.get(f"http://{LOOPBACK}:{port}/lab?token={token}", timeout=ASK_TIMEOUT_S, trust_env=False)
        except httpx.TransportError:
            return None
        return page.status_code == httpx.codes.OK and "jupyter-config-data" in page.text

    try:
        if not wait_until(opened, LAB_TIMEOUT_S):
            sys.exit("JupyterLab did not open:\n" + (folder / "lab.log").read_text(errors="replace"))
    finally:
        lab.stop()


if __name__ == "__main__":
    _prove()
