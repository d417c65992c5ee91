#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The process of vLLM's engine: it imports vLLM while this one does, and ends with it.

vLLM is imported twice, here and in its engine's process, 5 to 15 s each. vLLM starts that process once it knows the
engine's configuration, so one import comes after the other. `EarlyImport` starts it before anything is imported
here; what to run is sent to it later.

Run as a program, this file starts Python with the arguments it was given, in a process that is told to end when the
one that started it dies. vLLM's engine is started that way: if Triton's stub is killed, it cannot stop the engine any
more, and the kernel sends the signal in its place.
"""

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import queues, spawn
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from typing import Any

ENGINE_MODULE, THREADS = "vllm.v1.engine.core", "OMP_NUM_THREADS"
PR_SET_PDEATHSIG = 1  # linux/prctl.h; kept across exec


class EarlyImport(SpawnContext):
    """Where vLLM gets its engine's process from: the first one has begun to import vLLM already, others are new.

    To vLLM it is one of the start methods of `multiprocessing`, "spawn".
    """

    def __init__(self, module: str = ENGINE_MODULE) -> None:
        """Start a process that imports a module. It ends with this process, or when it is discarded."""
        super().__init__()
        self._executable = spawn.get_executable()
        self._early: _EarlyProcess | None = _EarlyProcess(module)

    def offer(self) -> None:
        """Have vLLM, which is imported here by now, take its engine's process from here.

        Nothing changes for one that gets it in another way than 0.25 to 0.32, or is told to fork.
        """
        utils = importlib.import_module("vllm.v1.engine.utils")
        if hasattr(utils, "get_mp_context"):
            utils.get_mp_context = partial(self._instead_of, utils.get_mp_context)
        else:
            self.discard()

    def _instead_of(self, choose: Callable[[], BaseContext]) -> BaseContext:
        chosen = choose()
        if isinstance(chosen, SpawnContext):
            return self
        self.discard()
        return chosen

    def Process(self, **options: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802 - multiprocessing's name
        """Return a process that runs `target` with `kwargs` once it is started, as `multiprocessing.Process` does."""
        early, self._early = self._early, None
        if early is None:
            return SpawnProcess(**options)
        # a program in front of Python (vLLM's --numa-bind) and queues reach a process only when it is made
        if spawn.get_executable() != self._executable or _has_queue(options["kwargs"]) or not early.is_alive():
            early.kill()
            return SpawnProcess(**options)
        early.take(**options)
        return early

    def discard(self) -> None:
        """End the process, unless vLLM has taken it."""
        if self._early:
            self._early.kill()
            self._early = None


class _EarlyProcess(SpawnProcess):
    """A process that imports the engine at once; its `start` only tells it what to run."""

    def __init__(self, module: str) -> None:
        receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
        # a daemon: if this process ends before there is anything to run, it is ended and not waited for
        super().__init__(target=_import_and_wait, args=(module, receiver), name="EngineCore", daemon=True)
        super().start()
        receiver.close()
        self._sender = sender

    def take(self, target: Callable[..., None], name: str, kwargs: dict[str, Any]) -> None:
        self.name, self._job = name, (name, target, kwargs)

    def start(self) -> None:
        self._sender.send((dict(os.environ), *self._job))
        self._sender.close()
        del self._job


def _has_queue(kwargs: dict[str, Any]) -> bool:
    return any(isinstance(value, queues.Queue) for value in kwargs.values())


def _import_and_wait(module: str, receiver: Connection) -> None:
    with contextlib.suppress(ImportError):  # seen again when the job is read
        importlib.import_module(module)
    try:
        environment, name, target, kwargs = receiver.recv()
    except EOFError:  # the other side has ended
        return
    receiver.close()
    _become(environment, name)
    target(**kwargs)


def _become(environment: dict[str, str], name: str) -> None:
    """Make up for what a process started only now would have got: its environment, its name, children of its own."""
    with contextlib.suppress(ImportError):  # it finds the words it replaces only before the environment changes
        importlib.import_module("setproctitle").getproctitle()
    threads = os.environ.get(THREADS)
    for gone in os.environ.keys() - environment.keys():
        del os.environ[gone]
    os.environ.update(environment)
    if environment.get(THREADS) not in (None, threads):  # read only once, by an import
        importlib.import_module("torch").set_num_threads(int(environment[THREADS]))
    process = multiprocessing.current_process()
    process.name, process.daemon = name, False


def become_python_that_dies_with_its_parent() -> None:
    """Replace this process by Python with the same arguments; the kernel ends it with the process that started it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606 - multiprocessing gave the arguments


if __name__ == "__main__":
    become_python_that_dies_with_its_parent()
