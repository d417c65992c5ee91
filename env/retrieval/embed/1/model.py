# SPDX-License-Identifier: Apache-2.0
"""Turns a question into a vector; the work is in encoder.py, which made the index of `retrieve` too."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from encoder import Encoder

LONGEST = 4000  # letters of a question; the time for a word grows with the square of its length


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Read the weights, which stand beside this file."""
        self.encoder = Encoder(Path(__file__).parent)

    def execute(self, requests):
        """Answer each request on its own."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Return the response to one request."""
        (text,) = pb_utils.get_input_tensor_by_name(request, "question").as_numpy().reshape(-1)
        question = text.decode("utf-8", errors="replace").strip()
        if not question or len(question) > LONGEST:
            reason = f"question must have 1 to {LONGEST} letters, not {len(question)}"
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, pb_utils.TritonError.INVALID_ARG))
        vector = np.asarray(self.encoder.encode(question), dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("vector", vector)])
