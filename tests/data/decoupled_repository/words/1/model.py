# SPDX-License-Identifier: Apache-2.0
"""A decoupled model without an engine: repeats the text it is given, word by word, and notices a cancellation."""

import json
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """Its "sampling parameters" steer it: words, pause_s (before each), fail_after (words), split (never join)."""

    def initialize(self, args):
        self.threads = []

    def execute(self, requests):
        for request in requests:
            thread = threading.Thread(target=self.answer, args=(request,))
            self.threads.append(thread)
            thread.start()

    def answer(self, request):
        def value(name, default):
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            return default if tensor is None else tensor.as_numpy()[0]

        sender = request.get_response_sender()
        options = json.loads(value("sampling_parameters", b"{}"))
        text = value("text_input", b"").decode()
        pieces = [f"{text} {number} " for number in range(options.get("words", 3))]
        if not (value("stream", False) or options.get("split")):
            pieces = ["".join(pieces)]
        for count, piece in enumerate(pieces):
            time.sleep(options.get("pause_s", 0))
            if sender.is_cancelled():
                pb_utils.Logger.log_info(f"words: cancelled after {count} of {len(pieces)}")
                break
            if count == options.get("fail_after"):
                error = pb_utils.TritonError(f"told to fail after {count}")
                sender.send(pb_utils.InferenceResponse(error=error), flags=FINAL)
                return
            output = pb_utils.Tensor("text_output", np.array([piece.encode()], dtype=np.object_))
            sender.send(pb_utils.InferenceResponse([output]))
        sender.send(flags=FINAL)

    def finalize(self):
        for thread in self.threads:
            thread.join()
