# SPDX-License-Identifier: Apache-2.0
"""A Triton server that this process starts, watches and stops; it dies with this process."""

import logging
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from ensemblekit.clients.http import answers_ok
from ensemblekit.errors import RepositoryError, ServerError, ServerExited, ServerNotReady, ServerStuck
from ensemblekit.faults.catalogue import ENGINE_REASONS, container_refusal, context_of, recognise
from ensemblekit.faults.fault import Recognised
from ensemblekit.faults.log import (
    TAIL_LINES,
    LogReader,
    dead_process,
    gave_up,
    has_lost_lock,
    is_ending,
    read_log,
    stub_without_library,
    tail,
)
from ensemblekit.faults.start_phases import start_phases
from ensemblekit.servers.container import ContainerInstallation
from ensemblekit.servers.embedded import EmbeddedInstallation
from ensemblekit.servers.outcome import CRASH_LOG, Kind, StartOutcome, outcome_of
from ensemblekit.servers.ports import (
    EVERYWHERE,
    LOOPBACK,
    control_arguments,
    control_headers,
    free_ports,
    new_key,
    require_free,
)
from ensemblekit.servers.supervised import Supervised, SupervisedProcess, new_prefix, sockets_folder, wait_until

__all__ = ["Installation", "ServerOptions", "TritonServer"]

Installation = EmbeddedInstallation | ContainerInstallation
logger = logging.getLogger(__name__)

READY_TIMEOUT_S = 600.0  # a first start on a slow disk compiles and loads weights
NO_ENSEMBLES = "E101"
SHOWN_KEY = "YOUR-KEY"
QUESTIONS_AT_ONCE = 128  # that an instance of a Python model can have open to others; Triton's own limit is 32
CRASHED = (134, 139)  # SIGABRT, SIGSEGV
CRASH_RETRIES = 3  # one start in 30 crashes on a busy machine


@dataclass(frozen=True)
class ServerOptions:
    """What the command line of tritonserver gets besides repository, ports and backends.

    Attributes:
        explicit: `--model-control-mode=explicit`: nothing loads unless the kit asks, with this server's own key.
        load_models: Models to load at start in explicit mode; `*` is all.
        exit_on_error: False adds `--exit-on-error=false`: the server stays although models failed.
        ports: HTTP, gRPC and metrics ports; free ones are found if None.
        host: The address at which HTTP and gRPC listen; metrics stay on loopback.
        extra: More arguments, as they are; a control mode that is given here is open to everybody.
    """

    explicit: bool = False
    load_models: tuple[str, ...] = ()
    exit_on_error: bool = True
    ports: tuple[int, int, int] | None = None
    host: str = LOOPBACK
    extra: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Return these options as command-line arguments."""
        words = ["--model-control-mode=explicit"] if self.explicit else []
        words += [f"--load-model={name}" for name in self.load_models]
        words += [] if self.exit_on_error else ["--exit-on-error=false"]
        return [*words, *self.extra]


@dataclass
class TritonServer(Supervised):
    """A server on loopback ports with its log in a file. Nothing runs until `start` or `attempt_start`.

    Attributes:
        installation: The server's files.
        repository: The model repository it serves.
        folder: Where `server.log` is written.
        environment: Variables added to this process's own.
    """

    installation: Installation
    repository: Path
    folder: Path
    options: ServerOptions = field(default_factory=ServerOptions)
    environment: dict[str, str] = field(default_factory=dict)
    started_s: float | None = None

    def __post_init__(self) -> None:
        """Choose the ports, so that the command can be shown before it is run."""
        if not self.repository.is_dir():
            raise RepositoryError(
                f"serve the model repository {self.repository}",
                found="no such folder",
                hint="give the folder that holds one folder per model, for example model_repo",
            )
        self.http_port, self.grpc_port, self.metrics_port = self.options.ports or free_ports(3)
        self._shm_prefix = new_prefix()
        self._key = new_key()
        self._log, self._died, self._was_stopped = LogReader(self.log_path), "", False

    @property
    def _host(self) -> str:
        """Where this process reaches the server."""
        return LOOPBACK if self.options.host == EVERYWHERE else self.options.host

    @property
    def http_url(self) -> str:
        """Address of the HTTP endpoint, without scheme, as tritonclient wants it."""
        return f"{self._host}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """Address of the gRPC endpoint."""
        return f"{self._host}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Address of the metrics endpoint."""
        return f"{LOOPBACK}:{self.metrics_port}"

    @property
    def control_headers(self) -> dict[str, str]:
        """What a request to load a model must carry."""
        return control_headers(self._key) if self.options.explicit else {}

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self.folder / "server.log"

    @property
    def pid(self) -> int | None:
        """Process id of the server's parent (its reaper) while it runs."""
        process = self._process  # another thread may stop it meanwhile
        return process.pid if process and process.exit_code is None else None

    @property
    def start_phases(self) -> dict[str, float]:
        """Where the seconds of the last start went, by phase; see `ensemblekit.faults.start_phases`."""
        return start_phases(read_log(self.log_path), self.started_s)

    @property
    def why_ended(self) -> str:
        """Which process died, a model's own or its engine's, without which it cannot answer; empty while all live.

        When a model's own died, the reaper ends the server; when an engine's did, whoever keeps the server.
        """
        self._look()
        return self._died

    @property
    def serves(self) -> bool:
        """Whether it runs, with every process that it needs to answer."""
        return self.running and not self.why_ended

    @property
    def command(self) -> list[str]:
        """The command line of the server, as arguments."""
        ports = (self.http_port, self.grpc_port, self.metrics_port)
        python = {"shm-region-prefix-name": self._shm_prefix, "thread-pool-size": QUESTIONS_AT_ONCE}
        options = [f"--backend-config=python,{name}={value}" for name, value in python.items()]
        options += [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
        options += control_arguments(self._key) if self.options.explicit else []
        options += self.options.arguments()
        return self.installation.command(
            self.repository, ports, options, environment=self.environment, host=self.options.host
        )

    @property
    def shell_command(self) -> str:
        """The command line as a reader could type it, with the variables that the server needs, without the key."""
        contained = isinstance(self.installation, ContainerInstallation)  # its variables are among the arguments
        variables = {} if contained else self.installation.environment | self.environment
        words = [_assignment(name, value) for name, value in variables.items()]
        # the name of shared memory stands for this process: what goes by it ends with it
        command = shlex.join(word for word in self.command if self._shm_prefix not in word)
        return " \\\n".join([*words, command.replace(self._key, SHOWN_KEY).replace(" --", " \\\n  --")])

    def start(self, timeout_s: float = READY_TIMEOUT_S, on_poll: Callable[[Self], None] | None = None) -> Self:
        """Start the server and return it once it is ready.

        Args:
            timeout_s: Seconds it may take.
            on_poll: Called about ten times a second while waiting, to show progress.

        Raises:
            PortBusy: Something else listens on one of its ports.
            ServerExited: The process ended before it was ready.
            ServerStuck: It waits for ever for a model's process that cannot start; it has been stopped.
            ServerNotReady: It was not ready in time; it has been stopped.
        """
        outcome = self.attempt_start(timeout_s, on_poll)
        if outcome.ready:
            return self
        raise _error(outcome, self.installation, timeout_s)

    def attempt_start(
        self, timeout_s: float = READY_TIMEOUT_S, on_poll: Callable[[Self], None] | None = None
    ) -> StartOutcome:
        """Start the server and return how that ended; a server that is not ready in time is stopped.

        Two faults of Triton's own are none of the models, so that such a start is made again, up to three times; the
        log of the last one is kept beside the other, and the outcome's note says which it was. Both were measured on
        genuine 24.08.

        It crashes now and then while it ends a failed start, before it can say its exit code: the thread of a model
        says that its instance is ready before it puts that back into a queue, and the unload takes from that queue
        meanwhile. About once in 30 starts on a busy machine, on 24.10 too.

        It gives up a model's process that does not answer for a second while it loads, as when the machine is short
        of time or slept, and frees messages that the process has still to read (stub_launcher.cc,
        ReceiveMessageFromStub). Then it waits for the end of a process that lives, without limit (the reaper ends
        that), or the process crashes while it holds a lock, and the server is aborted by the next who asks for that.

        Raises:
            PortBusy: Something else listens on one of its ports.
        """
        outcome = self._attempt(timeout_s, on_poll)
        for crashes in range(1, CRASH_RETRIES + 1):
            if outcome.kind != "exited" or self._was_stopped:
                break
            log, crashed = read_log(self.log_path), outcome.exit_code in CRASHED
            given_up = gave_up(log) or (crashed and has_lost_lock(log))
            if not given_up and not (crashed and is_ending(log)):
                break
            self.log_path.replace(self.log_path.with_name(CRASH_LOG))
            outcome = replace(self._attempt(timeout_s, on_poll), crashes=crashes, gave_up=given_up)
        return outcome

    def _attempt(self, timeout_s: float, on_poll: Callable[[Self], None] | None) -> StartOutcome:
        self._launch()
        begin = time.monotonic()
        process = self._process
        try:
            kind: Kind | None = wait_until(
                self._end_of_start, timeout_s, on_poll=(lambda: on_poll(self)) if on_poll else None
            )
        except BaseException:
            self.stop()
            raise
        elapsed = time.monotonic() - begin
        self._was_stopped = self._process is not process  # by another thread
        if kind == "ready":
            self.started_s = elapsed
            if process:
                process.say_ready()
        else:
            self.kill()  # what never became ready holds no request worth waiting for
        code = process.exit_code if process and kind == "exited" else None
        return outcome_of("timeout" if kind is None else kind, code, elapsed, self.log_path)

    def _end_of_start(self) -> Kind | None:
        """Return how the start ended, None while it is under way."""
        running = self.running  # before the log is read: its last words are in it
        if stub_without_library(self._look()) or self._died:
            return "stuck"
        if not running:
            return "exited"
        return "ready" if self.answers() else None

    def _look(self) -> str:
        """Return what is new in the log of the running server."""
        new = "\n".join(self._log.read_new()) if self._process else ""
        self._died = self._died or dead_process(new) or ""
        return new

    def start_again(
        self, timeout_s: float, tell: Callable[[str], None], on_poll: Callable[[Self], None] | None = None
    ) -> None:
        """Start at the same ports after it ended; the log of what ended last is kept beside the other.

        Args:
            timeout_s: Seconds it may take.
            tell: Gets a line of why it ended, and one when it is back.
            on_poll: As for `start`.

        Raises:
            ServerError: It could not be started again.
        """
        why = self.why_ended or f"it ended with exit code {self.exit_code}"
        tell(f"The server at {self.http_url}: {why}; starting it again.")
        self.kill()
        self.log_path.replace(self.log_path.with_name(CRASH_LOG))
        self.start(timeout_s, on_poll)
        tell(f"The server at {self.http_url} is ready again after {self.started_s:.1f} s.")

    def answers(self) -> bool:
        """Return whether the server says it is ready and serves its metrics."""
        return answers_ok(f"http://{self.http_url}/v2/health/ready") and answers_ok(
            f"http://{self.metrics_url}/metrics"
        )

    def kill(self) -> None:
        """Stop the server without waiting for requests that are under way; doing so again does nothing."""
        self._end(at_once=True)

    def _end(self, *, at_once: bool = False) -> bool:
        in_time = super()._end(at_once=at_once)
        if not in_time:
            logger.warning("the reaper of %s did not end in time and was killed", self.log_path)
        self._log.close()
        return in_time

    def _launch(self) -> None:
        if self.running:
            self.stop()
        for port in (self.http_port, self.grpc_port, self.metrics_port):
            require_free(port)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._died = ""
        own = {"VLLM_RPC_BASE_PATH": sockets_folder(self._shm_prefix)}  # vLLM removes none of its sockets
        self._process = SupervisedProcess(
            self.command,
            self.log_path,
            environment=os.environ | own | self.installation.environment | self.environment,
            folder=self.folder,
            shm_prefix=self._shm_prefix,
            after=self.installation.cleanup,
        )

    def __enter__(self) -> Self:
        """Start, for use in a `with` statement."""
        return self.start()

    def __exit__(self, *_error: object) -> None:
        """Stop."""
        self.stop()


def _assignment(name: str, value: str) -> str:
    """Return a variable as a shell takes it before a command; what only leads the reader's own stays short.

    >>> _assignment("PATH", f"/kit/bin:{os.environ['PATH']}"), _assignment("A", "b c")
    ('PATH=/kit/bin:"$PATH"', "A='b c'")
    """
    own = os.environ.get(name, "")
    if own and value.endswith(os.pathsep + own):
        return f'{name}={shlex.quote(value.removesuffix(own))}"${name}"'
    return f"{name}={shlex.quote(value)}"


def _error(outcome: StartOutcome, installation: Installation, timeout_s: float) -> ServerError:
    ends: dict[str, tuple[type[ServerError], str]] = {
        "exited": (ServerExited, f"it exited with code {outcome.exit_code}"),
        "stuck": (ServerStuck, f"{outcome.stuck or 'a process of a model cannot start'}; the server was stopped"),
        "timeout": (ServerNotReady, "it was still loading, and was stopped"),
    }
    kind, state = ends[outcome.kind]
    log = read_log(outcome.log_path)
    engine = recognise(log, context_of(log, here=True), among=ENGINE_REASONS)
    failures = [f"{load.model}: {load.failure}" for load in outcome.loads if load.failure]
    causes = [*outcome.poll_errors, *([engine.found] if engine else []), *failures, *filter(None, [outcome.note])]
    error = kind(
        f"get Triton {installation.release.name} ready within {timeout_s:g} s",
        found="; ".join([f"after {outcome.elapsed_s:.1f} s {state}", *causes]),
        hint=_hint(outcome, installation, log, engine or _root_cause(outcome, log)),
        log_path=outcome.log_path,
        log_tail=tail(outcome.log_path, TAIL_LINES),
    )
    if isinstance(error, ServerExited):
        error.exit_code = outcome.exit_code
    return error


def _root_cause(outcome: StartOutcome, log: str) -> Recognised | None:
    """Return what the catalogue knows of the first failure that is not another's consequence."""
    context = context_of(log, here=True)
    texts = [*outcome.poll_errors, *(load.failure for load in outcome.loads if load.failure), outcome.stuck]
    known = (recognise(text, context) for text in texts)
    return next((found for found in known if found and not found.fault.consequence), None)


def _hint(outcome: StartOutcome, installation: Installation, log: str, cause: Recognised | None) -> str:
    if cause and cause.code == NO_ENSEMBLES:
        return (
            f"{installation.flavour} of {installation.release.name} was built without --backend=ensemble: "
            "use FLAVOUR base-plus-vllm or custom-build, or RELEASE 24.10"
        )
    if library := outcome.missing_library:
        return f"install the system package that holds {library}, or name its folder in LD_LIBRARY_PATH"
    if cause:
        return cause.hint
    if isinstance(installation, ContainerInstallation) and (refused := container_refusal(outcome.exit_code, log)):
        return refused.hint
    if outcome.kind == "timeout":
        return "read the log's end; a slow disk or a first download of weights may need a larger READY_TIMEOUT_S"
    return "read the first line of the log that begins with E: later ones are often its consequence"
