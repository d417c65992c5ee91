# SPDX-License-Identifier: Apache-2.0
"""Says itself what its tensors are; there is no config.pbtxt."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "IN", "data_type": "TYPE_STRING", "dims": [1]})
        config.add_output({"name": "OUT", "data_type": "TYPE_STRING", "dims": [1]})
        config.set_max_batch_size(0)
        return config

    def execute(self, requests):
        return [respond(pb_utils.get_input_tensor_by_name(request, "IN")) for request in requests]


def respond(tensor):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", tensor.as_numpy())])
