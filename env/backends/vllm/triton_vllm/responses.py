# SPDX-License-Identifier: Apache-2.0
"""Sends answers and notices cancelled requests, in threads of their own; and what an answer tells besides its text.

Both are messages to the server process: about 0.1 ms each, nearly all of it waiting. On the engine's loop
that wait would hold up every other request. With many streams there would be more pieces than the server and the
models behind this one can take, and they would queue there. So a stream's pieces keep a distance that grows with the
number of streams: what comes sooner waits, and goes out as one piece. First and last pieces never wait.
"""

import heapq
import itertools
import json
import queue
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from triton_vllm.request import GenerationRequest

Chunk = tuple[Callable[[], list[str]], bool]  # what makes its texts, and whether it is the last
# How far apart the pieces of a stream are, for each stream that is open: 16 get a piece every 8 ms, 128 every 64 ms.
# Measured on an H200 in turn with half and twice as much: half cost the ensemble a sixth of its tokens/s at 16 and 64
# streams, twice as much gained nothing. Beyond 64 ms it is what a piece costs a Python model behind this one.
DISTANCE_S, LONG_S = 0.0005, 0.064
PIECE_COST_S = 0.00025
ERROR_PREFIX = "Error generating stream: "  # upstream's clients look for it
LOCAL_PATH = re.compile(r"(?<![\w:/.<])/(?:[\w.+@-]+/)+[\w.+@-]*")  # of a file here; not the one of a URL
CANCEL_POLL_S = 0.4  # a cancelled request is out of the engine within a second; each question is a message


def send_error(sender: Any, message: str, code: Any) -> None:
    """Send the one and last response of a request that failed; no client learns a path of this machine."""
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(LOCAL_PATH.sub("(a path)", message), code))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class ResponseSender:
    """The queue of answers to be sent, and the requests that may still be cancelled."""

    def __init__(self) -> None:
        """Start both threads."""
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: dict[GenerationRequest, list[Chunk]] = {}
        self._waiting_lock = threading.Lock()
        # used by the thread that sends: when each stream had its last piece, and those that wait for their distance
        self._sent: dict[GenerationRequest, float] = {}
        self._early: list[tuple[float, int, GenerationRequest]] = []
        self._count = itertools.count()
        self._open: dict[GenerationRequest, Callable[[], None]] = {}
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._send_all, name="responses", daemon=True),
            threading.Thread(target=self._watch, name="cancellation", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def watch(self, request: "GenerationRequest", cancel: Callable[[], None]) -> None:
        """Call `cancel` (from another thread) if the client cancels the request before its last response."""
        self._open[request] = cancel

    def chunk(self, request: "GenerationRequest", make: Callable[[], list[str]], *, final: bool) -> None:
        """Send texts, one for each of the request's sequences; `make` builds them off the engine's loop."""
        with self._waiting_lock:
            waiting = self._waiting.setdefault(request, [])
            waiting.append((make, final))
            known = len(waiting) > 1
        if final or not known:
            self._queue.put(lambda: self._turn(request, final=final))

    def error(self, request: "GenerationRequest", message: str, code: Any) -> None:
        """Send an error as the request's last response."""
        self._queue.put(lambda: self._close(request, lambda sender: send_error(sender, message, code)))

    def stop(self) -> None:
        """Send what is queued and end the threads."""
        self._stopped.set()
        self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _turn(self, request: "GenerationRequest", *, final: bool) -> None:
        """Send what a stream has, or let it keep its distance."""
        now = time.monotonic()
        due = 0.0 if final else self._sent.get(request, 0.0) + _distance_s(len(self._sent))
        if due > now:
            heapq.heappush(self._early, (due, next(self._count), request))
        else:
            self._send(request)

    def _send(self, request: "GenerationRequest") -> None:
        with self._waiting_lock:
            pieces = self._waiting.pop(request, None)
        if pieces is None:  # the last piece has overtaken, and has taken all others with it
            return
        final = pieces[-1][1]
        try:
            made = zip(*(make() for make, _ in pieces), strict=True)
            texts = np.array(["".join(parts).encode("utf-8") for parts in made], dtype=np.object_)
        except Exception as error:  # the client must hear of it
            pb_utils.Logger.log_error(f"[vllm] {ERROR_PREFIX}{error!r}")
            message = f"{ERROR_PREFIX}the answer could not be turned into text ({type(error).__name__})"
            self._close(request, lambda sender: send_error(sender, message, pb_utils.TritonError.INTERNAL))
            return
        if not final and not any(texts) and request.additional is None:  # the new tokens end inside a character
            return
        more = [] if request.additional is None else request.additional.drain()
        response = pb_utils.InferenceResponse([pb_utils.Tensor("text_output", texts), *more])
        if final:
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            self._close(request, lambda sender: sender.send(response, flags=flags))
        elif request.sender is not None:
            self._sent[request] = time.monotonic()
            request.sender.send(response)

    def _close(self, request: "GenerationRequest", send: Callable[[Any], None]) -> None:
        """Send a request's last response and let its sender go.

        Triton keeps what belongs to a request as long as its sender lives, and others may hold the request longer.
        """
        with request.lock:
            if request.sender is not None:
                sender, request.sender = request.sender, None
                send(sender)
        self._sent.pop(request, None)
        self._open.pop(request, None)

    def _send_all(self) -> None:
        while (action := self._next()) is not None:
            try:
                action()
            except Exception as error:  # one client's broken response must not end the thread
                pb_utils.Logger.log_error(f"[vllm] sending a response failed: {error!r}")
            del action  # it holds its request

    def _next(self) -> Callable[[], None] | None:
        """Wait for what is to be done next: what is new, or a stream whose distance is kept by now."""
        while self._early:
            due, _number, request = self._early[0]
            try:
                return self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                heapq.heappop(self._early)
                return lambda: self._send(request)
        return self._queue.get()

    def _watch(self) -> None:
        while not self._stopped.wait(CANCEL_POLL_S):
            for request, cancel in list(self._open.items()):
                with request.lock:  # Triton frees the request with its last response; asking later would crash
                    cancelled = request.sender is not None and request.sender.is_cancelled()
                if cancelled:
                    self._open.pop(request, None)
                    pb_utils.Logger.log_info("[vllm] Cancelling the request")
                    cancel()


def _distance_s(streams: int) -> float:
    """Return how far apart the pieces of each of so many streams are."""
    return max(min(LONG_S, DISTANCE_S * streams), PIECE_COST_S * streams)


@dataclass
class _Sequence:
    """What has come of one sequence; tokens and probabilities since the last response."""

    finish_reason: str | None = None
    cumulative_logprob: float | None = None
    tokens: int = 0
    logprobs: list[dict[int, Any]] = field(default_factory=list)


class AdditionalOutputs:
    """The additional outputs of one request that asks for them: as vllm_backend has them since r24.12."""

    def __init__(self, wanted: frozenset[str], params: Any, *, prompt_tokens: int, with_logprobs: bool) -> None:
        """Begin with nothing.

        Args:
            wanted: The names of the outputs that the client asks for.
            params: vLLM's sampling parameters.
            prompt_tokens: How many tokens the prompt has.
            with_logprobs: Whether the client asks for the probabilities of tokens; otherwise they are null.
        """
        self._wanted, self._prompt_tokens, self._with_logprobs = wanted, prompt_tokens, with_logprobs
        self._sequences = [_Sequence() for _ in range(params.n)]

    def add(self, piece: Any) -> None:
        """Take what vLLM's CompletionOutput tells; of a stream, what is new."""
        self.count(len(piece.token_ids), piece.finish_reason, piece.index)
        sequence = self._sequences[piece.index]
        sequence.cumulative_logprob = piece.cumulative_logprob
        sequence.logprobs += piece.logprobs or []

    def count(self, tokens: int, finish_reason: str | None, index: int = 0) -> None:
        """Take what a piece tells without probabilities: its number of tokens, and why the sequence ended with it."""
        sequence = self._sequences[index]
        sequence.finish_reason = finish_reason
        sequence.tokens += tokens

    def drain(self) -> list[Any]:
        """Return the tensors of the next response."""
        values = {
            "finish_reason": self._each(lambda one: str(one.finish_reason).encode(), np.object_),
            "cumulative_logprob": self._each(lambda one: one.cumulative_logprob, np.float32),
            "logprobs": self._each(lambda one: self._json(one).encode(), np.object_),
            "num_input_tokens": np.array([self._prompt_tokens], dtype=np.uint32),
            "num_output_tokens": self._each(lambda one: one.tokens, np.uint32),
        }
        for sequence in self._sequences:
            sequence.tokens, sequence.logprobs = 0, []
        return [pb_utils.Tensor(name, value) for name, value in values.items() if name in self._wanted]

    def _each(self, value: Any, kind: Any) -> Any:
        return np.array([value(sequence) for sequence in self._sequences], dtype=kind)

    def _json(self, sequence: _Sequence) -> str:
        """Return a list with, for each token, what is known of it and its likeliest alternatives."""
        if not self._with_logprobs:
            return "null"
        return json.dumps(
            [
                {
                    token: {"logprob": one.logprob, "rank": one.rank, "decoded_token": one.decoded_token}
                    for token, one in candidates.items()
                }
                for candidates in sequence.logprobs
            ]
        )
