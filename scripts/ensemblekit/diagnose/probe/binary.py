# SPDX-License-Identifier: Apache-2.0
"""The quick probe of a `tritonserver` program: one start, one question, one kill, and little to import before."""

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ensemblekit.errors import ServerExited, ServerNotReady
from ensemblekit.faults.log import parse_log, poll_errors, read_log, tail
from ensemblekit.faults.refusals import ENSEMBLE_PLATFORM, PORT_TAKEN, UNKNOWN_OPTION
from ensemblekit.servers.ports import LOOPBACK, control_arguments, control_headers, free_ports, new_key
from ensemblekit.servers.supervised import reaped

__all__ = ["PROBE_MODEL", "PROBE_TIMEOUT_S", "Probe", "probe_binary", "verdict_of", "write_probe"]

PROBE_MODEL = "ensemblekit_probe"
PROBE_TIMEOUT_S = 30.0  # it takes 0.1 s; a machine under load, or one with slow disks, may take longer
POLL_S = 0.004  # the whole start takes 40 to 100 ms
LAST_LINES = 12
PORT_TRIES = 3
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
class Probe:
    """The answer of a probe and its evidence.

    Attributes:
        ensembles: True or False; None if the server's answer fits neither.
        status: HTTP status of the load request.
        body: Its body.
        reason: The line of the log that the load API does not show, if there is one.
        elapsed_s: Seconds from the start of the process to the answer.
    """

    ensembles: bool | None
    status: int
    body: str
    reason: str
    elapsed_s: float

    def __str__(self) -> str:
        verdict = {True: "knows ensembles", False: "does not know ensembles", None: "could not tell"}[self.ensembles]
        return "\n".join(
            filter(None, [f"verdict:  {verdict}", f"load API: HTTP {self.status} {self.body}", self.reason])
        )

    __repr__ = __str__


def write_probe(folder: Path) -> Path:
    """Write the throw-away repository and return it.

    Raises:
        OSError: It cannot be written.
    """
    repository = folder / "repository"
    (repository / PROBE_MODEL / "1").mkdir(parents=True, exist_ok=True)
    (repository / PROBE_MODEL / "config.pbtxt").write_text(PROBE_CONFIG)
    return repository


def verdict_of(status: int, body: str, log: str, elapsed_s: float) -> Probe:
    """Return what an answer to the load request says about ensembles.

    Args:
        status: HTTP status of the answer.
        body: Its body.
        log: The server's log.
        elapsed_s: Seconds that it took.
    """
    errors = poll_errors(parse_log(log))
    refused = any(ENSEMBLE_PLATFORM in error for error in errors)
    known = status == BAD_REQUEST and "not available" in body
    return Probe(known if known != refused else None, status, body, next(iter(errors), ""), elapsed_s)


def probe_binary(binary: Path, folder: Path, *, environment: Mapping[str, str]) -> Probe:
    """Start a `tritonserver` on the throw-away ensemble, ask it to load that, and kill it.

    It holds no model and no client, so killing loses nothing, and it dies with this thread however that ends.

    Args:
        binary: The program.
        folder: For the throw-away repository and the log.
        environment: Variables added to this process's own.

    Raises:
        ServerExited: It ended by itself before it answered.
        ServerNotReady: It did not answer within half a minute.
        OSError: The program cannot be run.
    """
    repository = write_probe(folder)
    options, tries = list(LEAN_OPTIONS), PORT_TRIES
    while True:
        try:
            return _probe_once(binary, repository, folder / "server.log", options, environment)
        except ServerExited as error:
            words = "\n".join(error.log_tail)
            if PORT_TAKEN in words and tries > 1:  # between the choice of a free port and its use
                tries -= 1
                continue
            match = UNKNOWN_OPTION.search(words)
            if not match or match[1] not in options:
                raise
            options.remove(match[1])


def _probe_once(
    binary: Path, repository: Path, log_path: Path, options: list[str], environment: Mapping[str, str]
) -> Probe:
    (port,) = free_ports(1)
    command = [str(binary), "--model-control-mode=explicit", f"--model-repository={repository}"]
    command += [f"--http-address={LOOPBACK}", f"--http-port={port}", *options]
    key = new_key()
    command += control_arguments(key, grpc=False)
    begin = time.monotonic()
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
        status, body = _ask(process, port, key, begin, log_path)
        elapsed = time.monotonic() - begin
    finally:
        _kill(process)
    return verdict_of(status, body, read_log(log_path), elapsed)


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


def _ask(process: "subprocess.Popen[bytes]", port: int, key: str, begin: float, log_path: Path) -> tuple[int, str]:
    """Return status and body of the load request, asked as soon as the server listens."""
    while True:
        if process.poll() is not None:
            raise _ended(process.returncode, log_path, time.monotonic() - begin)
        try:
            connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PROBE_TIMEOUT_S)
            connection.request(
                "POST", f"/v2/repository/models/{PROBE_MODEL}/load", json.dumps({}), control_headers(key)
            )
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except OSError as error:
            if time.monotonic() - begin > PROBE_TIMEOUT_S:
                raise ServerNotReady(
                    f"probe the server within {PROBE_TIMEOUT_S:g} s",
                    found=f"it runs, but its HTTP port does not answer ({error})",
                    hint="was it compiled with --endpoint=http? `--static` reads its library without starting it",
                    log_path=log_path,
                    log_tail=tail(log_path, LAST_LINES),
                ) from error
            time.sleep(POLL_S)


def _ended(code: int, log_path: Path, elapsed_s: float) -> ServerExited:
    error = ServerExited(
        "probe the server",
        found=f"it ended after {elapsed_s:.2f} s with exit code {code}",
        hint="the log says why; `--static` reads its library without starting it",
        log_path=log_path,
        log_tail=_first_words(log_path),
    )
    error.exit_code = code
    return error


def _first_words(log_path: Path) -> tuple[str, ...]:
    """Return the log's end, or its first lines where the end is only the list of all options."""
    lines = read_log(log_path).splitlines()
    return tuple(lines[:2]) if any(UNKNOWN_OPTION.search(line) for line in lines[:2]) else tuple(lines[-LAST_LINES:])
