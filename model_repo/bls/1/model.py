# SPDX-License-Identifier: Apache-2.0
"""The ensemble's pipeline in Python: preprocess, llm and postprocess, asked one after the other."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
THREADS = 128  # answers that can be under way in this process at the same time, see config.pbtxt


class Failed(Exception):
    """A composing model answered with an error; it goes to the client as it is."""


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Make the threads in which streams wait: a decoupled model's next response is a blocking call."""
        self.waiting = ThreadPoolExecutor(THREADS, thread_name_prefix="waiting")

    def finalize(self):
        """End the threads."""
        self.waiting.shutdown(cancel_futures=True)

    async def execute(self, requests):
        """Answer all requests side by side; each sends its responses when they come."""
        # async_exec blocks a thread of the loop's own pool until the model's first response: of those there are few.
        asyncio.get_running_loop().set_default_executor(self.waiting)
        await asyncio.gather(*(self.respond(request) for request in requests))

    async def respond(self, request):
        """Send the responses to one request, or the one error that kept it from being answered."""
        sender = request.get_response_sender()
        try:
            if streams(request):
                async for piece in self.pieces(request):
                    sender.send(pb_utils.InferenceResponse([piece]))
                sender.send(flags=FINAL)
            else:  # in one message: two in close succession can make Triton's gRPC endpoint lose the second
                (piece,) = [piece async for piece in self.pieces(request)]
                sender.send(pb_utils.InferenceResponse([piece]), flags=FINAL)
        except Failed as failure:
            sender.send(pb_utils.InferenceResponse(error=failure.args[0]), flags=FINAL)

    async def pieces(self, request):
        """Yield the tensor `text_output` of each response."""
        prepared = await ask("preprocess", request.inputs(), PREPARED)
        prompt = [pb_utils.get_output_tensor_by_name(prepared, name) for name in PREPARED]
        responses = iter(await ask("llm", prompt, ["text_output"], decoupled=True))
        loop = asyncio.get_running_loop()
        while (response := await loop.run_in_executor(None, next, responses, None)) is not None:
            generated = pb_utils.get_output_tensor_by_name(checked(response), "text_output")
            if generated is None:  # the empty response that only says that the others were all
                continue
            tensor = pb_utils.Tensor("generated", generated.as_numpy())
            finished = await ask("postprocess", [tensor], ["text_output"])
            yield pb_utils.get_output_tensor_by_name(finished, "text_output")


PREPARED = ["text_input", "sampling_parameters", "stream", "exclude_input_in_output"]


def streams(request):
    """Return whether the request asks for its answer in pieces."""
    tensor = pb_utils.get_input_tensor_by_name(request, "stream")
    return tensor is not None and bool(tensor.as_numpy().reshape(-1)[0])


async def ask(model, inputs, outputs, *, decoupled=False):
    """Return a model's response, or the iterator over those of a decoupled one."""
    request = pb_utils.InferenceRequest(model_name=model, requested_output_names=outputs, inputs=inputs)
    if decoupled:
        return await request.async_exec(decoupled=True)
    return checked(await request.async_exec())


def checked(response):
    """Return a response that is no error."""
    if response.has_error():
        raise Failed(response.error())
    return response
