# SPDX-License-Identifier: Apache-2.0
"""Sends answers and notices cancelled requests, in threads of their own.

Both are messages to the server process: about 0.1 ms each, nearly all of it waiting. On the engine's loop
that wait would hold up every other request. When more pieces come than can be sent, the pieces of a stream that
wait for their turn are sent as one, so that no stream falls behind.
"""

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from triton_vllm.jobs import Job

Piece = tuple[Callable[[], list[str]], bool]  # what makes its texts, and whether it is the last
CANCEL_POLL_S = 0.4  # a cancelled request is out of the engine within a second; each question is a message


def send_error(sender: Any, message: str, code: Any) -> None:
    """Send the one and last response of a request that failed."""
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class Responses:
    """The queue of answers to be sent, and the jobs that may still be cancelled."""

    def __init__(self) -> None:
        """Start both threads."""
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: dict[Job, list[Piece]] = {}
        self._waiting_lock = threading.Lock()
        self._open: dict[Job, Callable[[], None]] = {}
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._send_all, name="responses", daemon=True),
            threading.Thread(target=self._watch, name="cancellation", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def watch(self, job: "Job", cancel: Callable[[], None]) -> None:
        """Call `cancel` (from another thread) if the client cancels the job before its last response."""
        self._open[job] = cancel

    def piece(self, job: "Job", make: Callable[[], list[str]], *, final: bool) -> None:
        """Send texts, one for each of the request's sequences; `make` builds them off the engine's loop."""
        with self._waiting_lock:
            waiting = self._waiting.get(job)
            if waiting is not None:
                waiting.append((make, final))
                return
            self._waiting[job] = [(make, final)]
        self._queue.put(lambda: self._send(job))

    def error(self, job: "Job", message: str, code: Any) -> None:
        """Send an error as the job's last response."""
        self._queue.put(lambda: self._close(job, lambda: send_error(job.sender, message, code)))

    def stop(self) -> None:
        """Send what is queued and end the threads."""
        self._stopped.set()
        self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _send(self, job: "Job") -> None:
        with self._waiting_lock:
            pieces = self._waiting.pop(job)
        final = pieces[-1][1]
        try:
            made = zip(*(make() for make, _ in pieces), strict=True)
            texts = np.array(["".join(parts).encode("utf-8") for parts in made], dtype=np.object_)
        except Exception as error:  # the client must hear of it
            message = f"the answer could not be turned into text: {error!r}"
            self._close(job, lambda: send_error(job.sender, message, pb_utils.TritonError.INTERNAL))
            return
        response = pb_utils.InferenceResponse([pb_utils.Tensor("text_output", texts)])
        if final:
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            self._close(job, lambda: job.sender.send(response, flags=flags))
        elif not job.closed:
            job.sender.send(response)

    def _close(self, job: "Job", send: Callable[[], None]) -> None:
        with job.lock:
            if not job.closed:
                job.closed = True
                send()
        self._open.pop(job, None)

    def _send_all(self) -> None:
        while (action := self._queue.get()) is not None:
            try:
                action()
            except Exception as error:  # one client's broken response must not end the thread
                pb_utils.Logger.log_error(f"[vllm] sending a response failed: {error!r}")

    def _watch(self) -> None:
        while not self._stopped.wait(CANCEL_POLL_S):
            for job, cancel in list(self._open.items()):
                with job.lock:  # Triton frees the request with its last response; asking later would crash
                    cancelled = not job.closed and job.sender.is_cancelled()
                if cancelled:
                    self._open.pop(job, None)
                    cancel()
