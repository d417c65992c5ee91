# SPDX-License-Identifier: Apache-2.0
"""Ask a real server for every repository of the atlas, and keep its words."""

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx

from ensemblekit.clients.http import load_model
from ensemblekit.releases import Flavour, get_release
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.logs import read_log
from ensemblekit.servers.process import ServerOptions, TritonServer
from tests.atlas.cases import CASES, Case

__all__ = ["Answer", "copy_repository", "measure_loads", "measure_start", "new_server", "spoken"]

START_TIMEOUT_S = 60.0
HANG_TIMEOUT_S = 8.0  # of a start that never ends
SHARED = {"echo", "two_inputs", "words"}  # the same in every repository that has them


@dataclass(frozen=True)
class Answer:
    """What a server said of one case: the load API's answer and the log of that time.

    Attributes:
        status: HTTP status of the load API; None for a start.
        body: Its body.
        log: The log, from the request on.
        kind: How the start ended, empty for a load.
    """

    status: int | None
    body: str
    log: str
    kind: str = ""

    @property
    def text(self) -> str:
        """Everything it said, with the line ends that the log writes as two letters."""
        return f"{self.body}\n{self.log}".replace("\\n", "\n")


def new_server(repository: Path, folder: Path, release: str, flavour: Flavour = "base-plus-vllm", **more: object):
    """Return a server that is not started."""
    installation = install_embedded(get_release(release), flavour, folder)
    return TritonServer(installation, repository, folder, ServerOptions(**more))  # type: ignore[arg-type]


def copy_repository(source: Path, target: Path) -> None:
    """Copy a repository's models beside those that are already there."""
    for model in source.iterdir():
        if model.name not in SHARED or not (target / model.name).exists():
            shutil.copytree(model, target / model.name)


def measure_loads(folder: Path, release: str) -> dict[str, Answer]:
    """Load every case that can be loaded, one after the other on one server, and return its answers."""
    cases = [case for case in CASES if case.how == "load"]
    repository = folder / "repository"
    repository.mkdir(parents=True)
    for case in cases:
        copy_repository(case.path, repository)
    with new_server(repository, folder, release, explicit=True) as server:
        return {case.folder: _load(server, case) for case in cases}


def _load(server: TritonServer, case: Case) -> Answer:
    begin = server.log_path.stat().st_size
    answer = load_model(server, case.model, timeout_s=START_TIMEOUT_S)
    log = server.log_path.read_bytes()[begin:].decode(errors="replace")
    # an ensemble that failed stays in the server's graph, and would be told again at every later load
    url = f"http://{server.http_url}/v2/repository/models/{case.model}/unload"
    httpx.post(url, json={}, timeout=START_TIMEOUT_S, trust_env=False)
    return Answer(answer.status, answer.body, log)


def measure_start(case: Case, folder: Path, release: str, flavour: Flavour = "base-plus-vllm") -> Answer:
    """Start a server on a case's repository alone and return how that ended."""
    repository = case.stage(folder / "repository")
    server = new_server(repository, folder, release, flavour)
    hangs = case.fault.status is None and case.fault.phase == "load"
    outcome = server.attempt_start(HANG_TIMEOUT_S if hangs else START_TIMEOUT_S)
    server.stop()
    return Answer(None, "", read_log(outcome.log_path), outcome.kind)


def spoken(case: Case, answer: Answer) -> str:
    """Return the words of the fault in an answer, empty if they are not there."""
    texts: Iterable[str] = answer.log.splitlines() if case.fault.hidden or not answer.status else [answer.body]
    for text in texts:
        if match := case.fault.match(text.replace("\\n", "\n").replace('\\"', '"')):
            return match[0].strip().rstrip('"')
    return ""


def wait_for(condition: object, seconds: float = START_TIMEOUT_S) -> bool:
    """Return whether a condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.1)
    return False
