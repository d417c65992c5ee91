# SPDX-License-Identifier: Apache-2.0
"""Puts the chat template around a question and completes the sampling parameters."""

import json
import locale

import numpy as np
import triton_python_backend_utils as pb_utils

# What SmolLM2's own tokenizer writes for a chat without a system message.
CHATML = (
    "<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


class BadRequest(Exception):
    """The request cannot be served as it stands; the text goes to the client."""


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Read the model's parameters and load the tokenizer, if one is named."""
        parameters = json.loads(args["model_config"])["parameters"]
        self.defaults = json.loads(parameters["default_sampling_parameters"]["string_value"])
        self.limits = json.loads(parameters.get("limits", {}).get("string_value", "{}"))
        name = parameters["tokenizer"]["string_value"]
        self.tokenizer = load_tokenizer(name) if name else None

    def execute(self, requests):
        """Answer each request on its own: a bad one gets an error, its neighbours are not touched."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Return the response to one request."""
        try:
            question = read(request, "chat_input").decode("utf-8")
            outputs = [
                text_tensor("text_input", self.prompt(question)),
                text_tensor("sampling_parameters", json.dumps(self.sampling_parameters(request))),
                flag_tensor("stream", bool(read(request, "stream", default=False))),
                flag_tensor("exclude_input_in_output", True),
            ]
        except RecursionError:
            return refusal("sampling_parameters is nested too deeply")
        except (BadRequest, UnicodeDecodeError) as error:
            return refusal(str(error))
        return pb_utils.InferenceResponse(output_tensors=outputs)

    def prompt(self, question):
        """Return the text that the language model continues."""
        if not question.strip():
            raise BadRequest("chat_input is empty: there is no question to answer")
        if self.tokenizer is None:
            return CHATML.format(question=question)
        chat = [{"role": "user", "content": question}]
        return self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)

    def sampling_parameters(self, request):
        """Return the defaults, overridden by the request's parameters, overridden by its JSON tensor."""
        text = read(request, "sampling_parameters", default=b"").decode("utf-8")
        try:
            given = json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise BadRequest(f"sampling_parameters is not valid JSON: {error}") from error
        if not isinstance(given, dict):
            raise BadRequest('sampling_parameters must be a JSON object such as {"max_tokens": 64}')
        asked = {**self.defaults, **json.loads(request.parameters() or "{}"), **given}
        for name, most in self.limits.items():
            if name in asked and not within(asked[name], most):
                raise BadRequest(f"{name} is {str(asked[name])[:40]}, and this server allows at most {most}")
        return asked


def refusal(reason):
    """Return the response to a request that is the client's to correct."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, pb_utils.TritonError.INVALID_ARG))


def within(value, most):
    """Return whether a value is a number up to `most`; what is no number at all is for the language model to refuse."""
    try:
        return value is not None and float(value) <= most
    except (TypeError, ValueError):
        return True
    except OverflowError:
        return False


def load_tokenizer(name):
    """Return a tokenizer with a chat template."""
    # The stub stays in the C locale, in which files that are not ASCII cannot be read.
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    if not tokenizer.chat_template:
        raise pb_utils.TritonModelException(f"the tokenizer {name} has no chat template")
    return tokenizer


def read(request, name, default=None):
    """Return the only value of an input tensor, or the default if the request does not have it."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return default
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1:
        raise BadRequest(f"{name} must hold exactly one value, not {len(values)}")
    return values[0]


def text_tensor(name, text):
    """Return a STRING tensor with one value."""
    return pb_utils.Tensor(name, np.array([text.encode("utf-8")], dtype=np.object_))


def flag_tensor(name, flag):
    """Return a BOOL tensor with one value."""
    return pb_utils.Tensor(name, np.array([flag], dtype=np.bool_))
