# SPDX-License-Identifier: Apache-2.0
"""The answer of a probe, and the usual way to it: a server is started, asked one question, and killed.

There is little to import before, since a program that knows its answer in a tenth of a second should not wait longer.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ensemblekit.clients.bounded import Asker
from ensemblekit.errors import RequestError, ServerExited, ServerNotReady
from ensemblekit.faults.log import parse_log, poll_errors, read_log, without_controls
from ensemblekit.faults.poll import ENSEMBLE_PLATFORM
from ensemblekit.faults.server import PORT_TAKEN, UNKNOWN_OPTION
from ensemblekit.servers.ports import LOOPBACK, control_arguments, control_headers, free_ports, new_key
from ensemblekit.servers.supervised import reaped

__all__ = ["FIX", "PROBE_MODEL", "PROBE_TIMEOUT_S", "ProbeAnswer", "answer_of", "probe_binary", "write_repository"]

Method = Literal["started", "library read", "asked"]
VERDICT = {True: "yes, it knows ensembles", False: "no, it does not know ensembles", None: "could not tell"}
EXIT_CODE = {True: 0, False: 1, None: 2}
UPSTREAM = "https://github.com/triton-inference-server/server/issues/7632"
FIX = (
    "its core was built without TRITON_ENABLE_ENSEMBLE: use NVIDIA's base image of the release plus the vLLM backend, "
    "build.py with --backend=ensemble, or a vLLM image from 24.10 on"
)
HINT = {True: "", False: f"{FIX} ({UPSTREAM})", None: "an answer that fits neither; read the evidence"}
PROBE_MODEL = "ensemblekit_probe"
PROBE_TIMEOUT_S = 30.0  # it takes 0.1 s; a machine under load, or one with slow disks, may take longer
POLL_S = 0.004  # the whole start takes 40 to 100 ms
LAST_LINES = 12
LONGEST_LINE = 1000  # characters
LONGEST_LOG = 16 * 2**20  # bytes; a server without models writes some thousands
TRIES = 3
CRASHED = (-6, -11, 134, 139)  # SIGABRT and SIGSEGV, of a child and as a shell says it
BAD_REQUEST = 400
# An ensemble whose only step does not exist. A server that knows ensembles answers 400: the model is not
# available. One that does not cannot read the config at all: 500, and the log says why.
PROBE_CONFIG = """platform: "ensemble"
input [ { name: "IN" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_STRING dims: [ 1 ] } ]
ensemble_scheduling { step [ {
  model_name: "ensemblekit_absent" model_version: -1
  input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "OUT" }
} ] }
"""
# What a server that holds no model can do without: gRPC, metrics, a second HTTP thread, pinned memory. A
# server that was compiled without one of these does not know its option, and is then started without it.
LEAN_OPTIONS = (
    "--allow-grpc=false",
    "--allow-metrics=false",
    "--http-thread-count=1",
    "--pinned-memory-pool-byte-size=0",
)


@dataclass(frozen=True)
class ProbeAnswer:
    """Whether a server knows ensembles, and how that is known.

    Attributes:
        target: What was probed, as it was given.
        ensembles: True or False; None if it could not be told.
        method: `started` (a throw-away ensemble was loaded), `library read`, or `asked` (a running server).
        evidence: One line a fact.
        elapsed_s: Seconds from the start of the server's process, or of the question, to the answer.
        hint: What to do next, empty where nothing is.
        status: HTTP status of the load request; None if there was none.
    """

    target: str
    ensembles: bool | None
    method: Method
    evidence: tuple[str, ...]
    elapsed_s: float
    hint: str = ""
    status: int | None = None

    @property
    def exit_code(self) -> int:
        """0 for yes, 1 for no, 2 for could not tell."""
        return EXIT_CODE[self.ensembles]

    def as_dict(self) -> dict[str, Any]:
        """Return the answer for JSON."""
        return asdict(self) | {"verdict": VERDICT[self.ensembles], "exit_code": self.exit_code}

    def __str__(self) -> str:
        rows = [f"verdict:  {VERDICT[self.ensembles]}", *(f"evidence: {line}" for line in self.evidence)]
        rows += [f"fix:      {self.hint}"] if self.hint else []
        return without_controls("\n".join(rows))

    __repr__ = __str__


def probe_binary(binary: Path, folder: Path, *, environment: Mapping[str, str], target: str = "") -> ProbeAnswer:
    """Start a `tritonserver` on the throw-away ensemble, ask it to load that, and kill it.

    It holds no model and no client, so killing loses nothing, and it dies with this thread however that ends.

    Raises:
        ServerExited: It ended by itself before it answered.
        ServerNotReady: It did not answer within half a minute.
        OSError: The program cannot be run.
    """
    repository = write_repository(folder)
    log_path = folder / "server.log"
    options, tries = list(LEAN_OPTIONS), TRIES
    while True:
        try:
            begin = time.monotonic()
            status, body = _probe_once(binary, repository, log_path, options, environment)
            return answer_of(target or str(binary), status, body, log_path, time.monotonic() - begin)
        except ServerExited as error:
            words = "\n".join(error.log_tail)
            match = UNKNOWN_OPTION.search(words)
            if match and match[1] in options:
                options.remove(match[1])
            elif tries > 1 and (PORT_TAKEN in words or error.exit_code in CRASHED):
                tries -= 1  # another took the port between its choice and its use, or Triton crashed while it ended
            else:
                raise


def write_repository(folder: Path) -> Path:
    """Write the throw-away repository and return it.

    Raises:
        OSError: It cannot be written.
    """
    repository = folder / "repository"
    (repository / PROBE_MODEL / "1").mkdir(parents=True, exist_ok=True)
    (repository / PROBE_MODEL / "config.pbtxt").write_text(PROBE_CONFIG)
    return repository


def answer_of(target: str, status: int, body: str, log_path: Path, elapsed_s: float) -> ProbeAnswer:
    """Return what an answer to the load request says about ensembles."""
    errors = poll_errors(parse_log(read_log(log_path)))
    refused = any(ENSEMBLE_PLATFORM in error for error in errors)
    known = status == BAD_REQUEST and "not available" in body
    verdict = known if known != refused else None
    evidence = [f"load API on a throw-away ensemble: HTTP {status} {body}"]
    evidence += [f"its log, which the API hides: {error}" for error in errors[:1]]
    return ProbeAnswer(target, verdict, "started", tuple(evidence), elapsed_s, HINT[verdict], status)


def _load(port: int, headers: Mapping[str, str]) -> tuple[int, str]:
    reply = Asker(f"{LOOPBACK}:{port}", PROBE_TIMEOUT_S, headers).ask(f"/v2/repository/models/{PROBE_MODEL}/load", {})
    return reply.status, reply.text


def _probe_once(
    binary: Path, repository: Path, log_path: Path, options: list[str], environment: Mapping[str, str]
) -> tuple[int, str]:
    """Return status and body of the load request."""
    (port,) = free_ports(1)
    key = new_key()
    command = [str(binary), "--model-control-mode=explicit", f"--model-repository={repository}"]
    command += [f"--http-address={LOOPBACK}", f"--http-port={port}", *options, *control_arguments(key, grpc=False)]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            _dies_with_this_thread(command),
            stdin=subprocess.PIPE,  # the reaper watches it; nobody else reads it
            stdout=log,
            stderr=subprocess.STDOUT,
            # a server without models needs no GPU, and asking the driver for one costs a second
            env=os.environ | environment | {"CUDA_VISIBLE_DEVICES": ""},
            start_new_session=True,
        )
    try:
        return _ask(process, port, key, log_path)
    finally:
        _kill(process)


def _dies_with_this_thread(command: list[str]) -> list[str]:
    """Return a command line that runs a command which the kernel kills when this thread ends."""
    if setpriv := shutil.which("setpriv"):
        return [setpriv, "--pdeathsig", "KILL", *command]
    return reaped(command)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # the reaper's word to end its child
    if shutil.which("setpriv"):
        process.kill()
    process.wait()


def _ask(process: "subprocess.Popen[bytes]", port: int, key: str, log_path: Path) -> tuple[int, str]:
    """Return status and body of the load request, asked as soon as the server listens."""
    begin = time.monotonic()
    while True:
        if process.poll() is not None:
            raise _ended(process.returncode, log_path, time.monotonic() - begin)
        try:
            return _load(port, control_headers(key))
        except RequestError as error:
            found = f"it runs, but its HTTP port does not answer ({error.found})"
        talks = log_path.stat().st_size > LONGEST_LOG
        if talks or time.monotonic() - begin > PROBE_TIMEOUT_S:
            raise ServerNotReady(
                f"probe the server within {PROBE_TIMEOUT_S:g} s",
                found=f"it wrote {LONGEST_LOG >> 20} MiB and did not answer: no Triton server" if talks else found,
                hint="was it compiled with --endpoint=http? `--static` reads its library without starting it",
                log_path=log_path,
                log_tail=_last_words(log_path),
            )
        time.sleep(POLL_S)


def _ended(code: int, log_path: Path, elapsed_s: float) -> ServerExited:
    error = ServerExited(
        "probe the server",
        found=f"it ended after {elapsed_s:.2f} s with exit code {code}",
        hint="the log says why; `--static` reads its library without starting it",
        log_path=log_path,
        log_tail=_last_words(log_path),
    )
    error.exit_code = code
    return error


def _last_words(log_path: Path) -> tuple[str, ...]:
    """Return the log's end, or its first lines where the end is only the list of all options."""
    lines = [line[:LONGEST_LINE] for line in read_log(log_path).splitlines()]
    return tuple(lines[:2] if any(UNKNOWN_OPTION.search(line) for line in lines[:2]) else lines[-LAST_LINES:])
