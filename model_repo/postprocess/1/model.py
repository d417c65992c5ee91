# SPDX-License-Identifier: Apache-2.0
"""Cuts the end-of-turn marker off generated text, and nothing else."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Read the marker from the model's parameters."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.end_of_turn = parameters["end_of_turn"]["string_value"].encode("utf-8")

    def execute(self, requests):
        """Answer each request; of a stream, each piece is a request."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Return the response to one request.

        White space stays as it is: at the edge of a piece it stands between two words.
        """
        generated = pb_utils.get_input_tensor_by_name(request, "generated").as_numpy()
        texts = [text.partition(self.end_of_turn)[0] for text in generated.reshape(-1)]
        output = pb_utils.Tensor("text_output", np.array(texts, dtype=np.object_))
        return pb_utils.InferenceResponse(output_tensors=[output])
