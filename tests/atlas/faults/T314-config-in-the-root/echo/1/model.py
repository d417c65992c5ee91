# SPDX-License-Identifier: Apache-2.0
"""Answers with what it was given."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [respond(pb_utils.get_input_tensor_by_name(request, "IN")) for request in requests]


def respond(tensor):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", tensor.as_numpy())])
