# SPDX-License-Identifier: Apache-2.0
"""What an answer tells besides its text, for a request that asks for it: as vllm_backend does since r24.12."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


@dataclass
class _Sequence:
    """What has come of one sequence; tokens and probabilities since the last response."""

    finish_reason: str | None = None
    cumulative_logprob: float | None = None
    tokens: int = 0
    logprobs: list[dict[int, Any]] = field(default_factory=list)


class AdditionalOutputs:
    """The additional outputs of one request."""

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
        sequence = self._sequences[piece.index]
        sequence.finish_reason = piece.finish_reason
        sequence.cumulative_logprob = piece.cumulative_logprob
        sequence.tokens += len(piece.token_ids)
        sequence.logprobs += piece.logprobs or []

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
