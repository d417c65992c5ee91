# SPDX-License-Identifier: Apache-2.0
"""Finds the passages whose vectors are most like that of the question."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Read the index: one vector, one passage and one source a row."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.count = int(parameters["passages"]["string_value"])
        with np.load(Path(__file__).parent / "index.npz") as index:
            self.vectors = index["vectors"]
            self.texts = {name: as_bytes(index[name]) for name in ("passages", "sources")}

    def execute(self, requests):
        """Answer each request on its own."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Return the response to one request, the best passage first."""
        vector = pb_utils.get_input_tensor_by_name(request, "vector").as_numpy()
        best = np.argsort(-(self.vectors @ vector), kind="stable")[: self.count]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, texts[best]) for name, texts in self.texts.items()])


def as_bytes(texts):
    """Return texts as the values of a STRING tensor."""
    return np.array([str(text).encode("utf-8") for text in texts], dtype=np.object_)
