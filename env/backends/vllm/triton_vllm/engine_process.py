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
# Read when a program starts. On the CPU vLLM sets the first for its engine's process (vllm/platforms/cpu.py).
READ_AT_START = ("LD_PRELOAD", "LD_LIBRARY_PATH")
PR_SET_PDEATHSIG = 1  # linux/prctl.h; kept across exec


class EarlyImport(SpawnContext):
    """Where vLLM gets its engine's process from: the first one has begun to import vLLM already, others are new.

    To vLLM it is one of the start methods of `multiprocessing`, "spawn".
    """

    def __init__(self, module: str = ENGINE_MODULE) -> None:
        """Start a process that imports a module; unless vLLM takes it, it ends with the context or this process."""
        super().__init__()
        self._early: _EarlyProcess | None = _EarlyProcess(module)

    def __enter__(self) -> "EarlyImport":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, unless vLLM has taken it."""
        if self._early:
            self._early.end()
            self._early = None

    def offer(self) -> None:
        """Have vLLM, which is imported here by now, take its engine's process from here.

        Nothing changes for one that gets it in another way than 0.25 to 0.32, or is told to fork.
        """
        utils = importlib.import_module("vllm.v1.engine.utils")
        if hasattr(utils, "get_mp_context"):
            utils.get_mp_context = partial(self._instead_of, utils.get_mp_context)

    def _instead_of(self, choose: Callable[[], BaseContext]) -> BaseContext:
        chosen = choose()
        return self if isinstance(chosen, SpawnContext) else chosen

    def Process(self, **options: Any) -> SpawnProcess:  # type: ignore[override]  # noqa: N802 - multiprocessing's name
        """Return a process that runs `target` with `kwargs` once it is started, as `multiprocessing.Process` does."""
        if self._early is None or options.keys() != {"target", "name", "kwargs"}:
            return SpawnProcess(**options)
        early, self._early = self._early, None
        early.take(**options)
        return early


class _EarlyProcess(SpawnProcess):
    """A process that imports the engine at once; its `start` only tells it what to run, or starts a new one."""

    def __init__(self, module: str) -> None:
        receiver, sender = multiprocessing.get_context("spawn").Pipe(duplex=False)
        self._made_with = _what_a_start_fixes()
        # a daemon: if this process ends before there is anything to run, it is ended and not waited for
        super().__init__(target=_import_and_wait, args=(module, receiver), name="EngineCore", daemon=True)
        super().start()
        receiver.close()
        self._sender = sender

    def take(self, target: Callable[..., None], name: str, kwargs: dict[str, Any]) -> None:
        self.name, self._job = name, {"target": target, "name": name, "kwargs": kwargs}

    def start(self) -> None:
        job, self._job = self._job, {}
        fits = self._made_with == _what_a_start_fixes() and not _has_queue(job["kwargs"])
        if fits and self.is_alive():
            # if it ends meanwhile, whoever waits for it sees that it did
            with self._sender, contextlib.suppress(BrokenPipeError):
                self._sender.send((dict(os.environ), sys.path))
                self._sender.send(job)
        else:
            self.end()
            super().__init__(**job)
            super().start()

    def end(self) -> None:
        """End the process before it was told what to run."""
        self._sender.close()
        del self._sender  # a new process could not inherit it
        self.terminate()
        self.join()


def _what_a_start_fixes() -> list[Any]:
    """Return the program in front of Python (vLLM's --numa-bind puts one there) and the linker's variables."""
    return [spawn.get_executable(), *map(os.environ.get, READ_AT_START)]


def _has_queue(kwargs: dict[str, Any]) -> bool:
    """Return whether there is one among the arguments: only a process that is being made can inherit it."""
    return any(isinstance(value, queues.Queue) for value in kwargs.values())


def _import_and_wait(module: str, receiver: Connection) -> None:
    with contextlib.suppress(ImportError):  # seen again when the job is read
        importlib.import_module(module)
    with receiver:
        try:
            environment, sys.path[:] = receiver.recv()
            _take_over(environment)
            job = receiver.recv()
        except EOFError:  # the other side has ended
            return
    process = multiprocessing.current_process()
    process.name, process.daemon = job["name"], False  # it may start processes of its own
    job["target"](**job["kwargs"])


def _take_over(environment: dict[str, str]) -> None:
    with contextlib.suppress(ImportError):  # it finds the words it replaces only before the environment changes
        importlib.import_module("setproctitle").getproctitle()
    threads = os.environ.get(THREADS)
    for gone in os.environ.keys() - environment.keys():
        del os.environ[gone]
    os.environ.update(environment)
    if environment.get(THREADS) not in (None, threads):  # read only once, by an import
        importlib.import_module("torch").set_num_threads(int(environment[THREADS]))


def become_python_that_dies_with_its_parent() -> None:
    """Replace this process by Python with the same arguments; the kernel ends it with the process that started it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606 - multiprocessing gave the arguments


if __name__ == "__main__":
    become_python_that_dies_with_its_parent()
