# SPDX-License-Identifier: Apache-2.0
"""Decoupled: two responses to each request, the first with the parameters that came with it."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for text in (request.parameters(), "second")[: 2 if streams(request) else 1]:
                tensor = pb_utils.Tensor("text_output", np.array([text.encode()], dtype=np.object_))
                sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def streams(request):
    tensor = pb_utils.get_input_tensor_by_name(request, "stream")
    return tensor is not None and bool(tensor.as_numpy().reshape(-1)[0])
