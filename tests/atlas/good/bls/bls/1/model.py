# SPDX-License-Identifier: Apache-2.0
"""Asks another model: business logic scripting."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [ask(pb_utils.get_input_tensor_by_name(request, "IN")) for request in requests]


def ask(tensor):
    request = pb_utils.InferenceRequest(
        model_name="bls_worker",
        requested_output_names=["OUT"],
        inputs=[pb_utils.Tensor("IN", tensor.as_numpy())],
    )
    answer = request.exec()
    return pb_utils.InferenceResponse([pb_utils.get_output_tensor_by_name(answer, "OUT")])
