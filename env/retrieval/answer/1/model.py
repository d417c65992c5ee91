# SPDX-License-Identifier: Apache-2.0
"""Asks `llm` and `postprocess`, and lets the sources past them; as `retrieval_bls` it asks all the other steps too.

Why a step with code: Triton refuses an ensemble in which something comes from both sides of a decoupled model. `llm` is
one, sources are found before it and text comes after it. This step is decoupled as well, and both come out of it.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
THREADS = 128  # answers that can be under way in this process at the same time, see config.pbtxt
# What each model is given, and what it is asked for.
PREPARED = ("text_input", "sampling_parameters", "stream", "exclude_input_in_output")
MODELS = {
    "embed": (("question",), ("vector",)),
    "retrieve": (("vector",), ("passages", "sources")),
    "prompt": (("question", "passages"), ("chat_input",)),
    "preprocess": (("chat_input", "sampling_parameters", "stream"), PREPARED),
    "llm": (PREPARED, ("text_output",)),
    "postprocess": (("generated",), ("text_output",)),
}
IN_FRONT = ("embed", "retrieve", "prompt", "preprocess")  # of this model in the ensemble


class Failed(Exception):
    """A model answered with an error; it goes to the client as it is."""


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Read which steps are this model's own, and make the threads in which answers wait."""
        config = json.loads(args["model_config"])
        self.in_front = IN_FRONT if config["input"][0]["name"] == "question" else ()
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
        sender, tensors = request.get_response_sender(), {tensor.name(): tensor for tensor in request.inputs()}
        try:
            for model in self.in_front:
                tensors |= outputs(await ask(model, tensors))
            if tensors["stream"].as_numpy()[0]:
                async for piece in self.pieces(tensors):
                    sender.send(piece)
                sender.send(flags=FINAL)
            else:  # in one message: two in close succession can make Triton's gRPC endpoint lose the second
                (piece,) = [piece async for piece in self.pieces(tensors)]
                sender.send(piece, flags=FINAL)
        except Failed as failure:
            sender.send(pb_utils.InferenceResponse(error=failure.args[0]), flags=FINAL)

    async def pieces(self, tensors):
        """Yield each response: a piece of text, and the sources."""
        responses = iter(await ask("llm", tensors, decoupled=True))
        loop = asyncio.get_running_loop()
        while (response := await loop.run_in_executor(None, next, responses, None)) is not None:
            if "text_output" not in (found := outputs(checked(response))):
                continue  # the empty response that only says that the others were all
            generated = {"generated": pb_utils.Tensor("generated", found["text_output"].as_numpy())}
            finished = outputs(await ask("postprocess", generated))
            yield pb_utils.InferenceResponse([finished["text_output"], tensors["sources"]])


async def ask(model, tensors, *, decoupled=False):
    """Return a model's response to those of the tensors that it takes, or the iterator over a decoupled one's."""
    takes, gives = MODELS[model]
    inputs = [tensors[name] for name in takes if name in tensors]
    request = pb_utils.InferenceRequest(model_name=model, requested_output_names=list(gives), inputs=inputs)
    if decoupled:
        return await request.async_exec(decoupled=True)
    return checked(await request.async_exec())


def outputs(response):
    """Return a response's tensors by name."""
    return {tensor.name(): tensor for tensor in response.output_tensors()}


def checked(response):
    """Return a response that is no error."""
    if response.has_error():
        raise Failed(response.error())
    return response
