# SPDX-License-Identifier: Apache-2.0
"""Puts passages and question into a conversation, which `preprocess` gives the model's chat template."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Read what the language model is told to do."""
        self.task = json.loads(args["model_config"])["parameters"]["task"]["string_value"]

    def execute(self, requests):
        """Answer each request on its own."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Return the response to one request."""
        (question,), passages = (read(request, name) for name in ("question", "passages"))
        # One message with the best passage last, nearest to the question: a small model answers best that way.
        message = "\n\n".join([*reversed(passages), f"{self.task} {question}"])
        chat = [{"role": "user", "content": message}]
        text = np.array([json.dumps(chat).encode("utf-8")], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("chat_input", text)])


def read(request, name):
    """Return the texts of an input tensor."""
    values = pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
    return [value.decode("utf-8", errors="replace") for value in values]
