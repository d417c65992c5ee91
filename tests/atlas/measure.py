# SPDX-License-Identifier: Apache-2.0
"""Ask a real server for every repository of the atlas, and keep its words."""

import shutil
import sys
import venv
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from ensemblekit.assets.store import fetch_wheel, unpack_wheel
from ensemblekit.clients.http import load_model, model_states
from ensemblekit.diagnose.lint import LintReport
from ensemblekit.faults.log import read_log
from ensemblekit.releases import Flavour, get_release
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import ServerOptions, TritonServer
from tests.atlas.cases import CASES, Case

__all__ = [
    "NUMPY_2",
    "Answer",
    "ask",
    "copy_repository",
    "index",
    "measure_all",
    "new_server",
    "numpy_2_environment",
    "said_first",
    "spoken",
]

START_TIMEOUT_S = 60.0
HANG_TIMEOUT_S = 8.0  # of a start that never ends
NUMPY_2 = "2.0.2"
NUMPY_2_SHA256 = {
    (3, 11): "13e689d772146140a252c3a28501da66dfecd77490b498b168b501835041f951",
    (3, 12): "0123ffdaa88fa4ab64835dcbde75dcdf89c453c922f18dced6e27c90d1d0ec5a",
}
SHARED = {"echo", "two_inputs", "words"}  # the same in every repository that has them


@dataclass(frozen=True)
class Answer:
    """What a server said of one case: the load API's answer and the log of that time.

    Attributes:
        status: HTTP status of the load API; None for a start.
        body: Its body.
        log: The log, from the request on.
        kind: How the start ended, empty for a load.
        head: The log of the start before.
    """

    status: int | None
    body: str
    log: str
    kind: str = ""
    head: str = ""

    @property
    def text(self) -> str:
        """Everything it said, with the line ends that the log writes as two letters."""
        return f"{self.body}\n{self.log}".replace("\\n", "\n")


def new_server(
    repository: Path, folder: Path, release: str, flavour: Flavour = "base-plus-vllm", **more: object
) -> TritonServer:
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
        head = read_log(server.log_path)
        return {case.folder: _load(server, case, head) for case in cases}


def _load(server: TritonServer, case: Case, head: str) -> Answer:
    begin = server.log_path.stat().st_size
    answer = load_model(server, case.model, timeout_s=START_TIMEOUT_S)
    log = server.log_path.read_bytes()[begin:].decode(errors="replace")
    # an ensemble that failed stays in the server's graph, and would be told again at every later load
    url = f"http://{server.http_url}/v2/repository/models/{case.model}/unload"
    httpx.post(url, json={}, timeout=START_TIMEOUT_S, headers=server.control_headers, trust_env=False)
    return Answer(answer.status, answer.body, log, head=head)


def measure_start(case: Case, folder: Path, release: str, flavour: Flavour = "base-plus-vllm") -> Answer:
    """Start a server on a case's repository alone and return how that ended."""
    repository = case.stage(folder / "repository")
    server = new_server(repository, folder, release, flavour)
    hangs = case.fault.status is None and case.fault.phase == "load"
    outcome = server.attempt_start(HANG_TIMEOUT_S if hangs else START_TIMEOUT_S)
    server.stop()
    return Answer(None, "", read_log(outcome.log_path), outcome.kind)


def measure_all(folder: Path, releases: Sequence[str]) -> tuple[dict[str, dict[str, Answer]], dict[str, Answer]]:
    """Return what each release says to every load, and how the starts on 24.08 end; the servers run side by side."""
    starts = [case for case in CASES if case.how == "start"]
    with ThreadPoolExecutor() as pool:
        loads = {release: pool.submit(measure_loads, folder / release, release) for release in releases}
        ends = {case.folder: pool.submit(_start_24_08, case, folder / case.folder) for case in starts}
        return {name: job.result() for name, job in loads.items()}, {name: job.result() for name, job in ends.items()}


def _start_24_08(case: Case, folder: Path) -> Answer:
    folder.mkdir()
    return measure_start(case, folder, "24.08", "vllm-image" if case.code == "E101" else "base-plus-vllm")


def spoken(case: Case, answer: Answer) -> str:
    """Return the words of the fault in an answer, empty if they are not there."""
    texts: Iterable[str] = answer.log.splitlines() if case.fault.hidden or not answer.status else [answer.body]
    for text in texts:
        if match := case.fault.match(text.replace("\\n", "\n").replace('\\"', '"')):
            return match[0].strip().rstrip('"')
    return ""


def ask(
    server: TritonServer, path: str, body: dict[str, object], timeout_s: float = START_TIMEOUT_S
) -> tuple[int, dict[str, str]]:
    """Return status and body of a request to `/v2/models/<path>`."""
    url = f"http://{server.http_url}/v2/models/{path}"
    answer = httpx.post(url, json=body, timeout=timeout_s, trust_env=False)
    return answer.status_code, answer.json()


def index(server: TritonServer) -> dict[str, str]:
    """Return the state of each model."""
    return model_states(server)


def said_first(report: LintReport, case: Case) -> str:
    """Return the words that lint predicts for the model that is asked for: of its own fault, or of its step's."""
    own = [finding.says for finding in report.errors if finding.code == case.code and finding.first]
    return own[0] if own else ""


def numpy_2_environment(folder: Path) -> Path:
    """Make a Python environment with numpy 2 and nothing else, and return its folder.

    Raises:
        FetchError: The wheel cannot be fetched.
    """
    wheel = fetch_wheel("numpy", NUMPY_2, sha256=NUMPY_2_SHA256[sys.version_info[:2]])
    venv.create(folder, symlinks=True, with_pip=False)
    unpack_wheel(wheel, next(folder.glob("lib/python3*/site-packages")))
    return folder
