# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the language model: says that it is one, and repeats the question, word by word."""

import json
import re
import time

import numpy as np
import triton_python_backend_utils as pb_utils

DEFAULT_MAX_TOKENS = 16  # vLLM's own default; a word counts as a token here
# vLLM's names of sampling parameters: a misspelt one is an error here too, the others change nothing
KNOWN = """
n presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop
stop_token_ids bad_words ignore_eos max_tokens min_tokens logprobs prompt_logprobs skip_special_tokens
spaces_between_special_tokens include_stop_str_in_output truncate_prompt_tokens logit_bias allowed_token_ids
structured_outputs
"""
USER_MESSAGE = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Read how long a word takes."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self.seconds_per_token = float(parameters.get("seconds_per_token", {}).get("string_value") or 0)

    def execute(self, requests):
        """Answer each request through its response sender, as a decoupled model does; one after the other."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                answers = self.answers(request)
            except ValueError as error:
                problem = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                answers = [pb_utils.InferenceResponse(error=problem)]
            for answer in answers[:-1]:
                sender.send(answer)
            sender.send(answers[-1], flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def answers(self, request):
        """Return the responses to one request: one for each word in a stream, else one."""
        prompt = read(request, "text_input", b"").decode("utf-8")
        stream = bool(read(request, "stream", False))
        exclude = read(request, "exclude_input_in_output", None)
        if not prompt:
            raise ValueError("text_input is empty: there is nothing to continue")
        if stream and exclude is not None and not exclude:
            raise ValueError("stream with exclude_input_in_output=false is not supported")
        given = parameters_of(request)
        for name in given:
            if name not in KNOWN.split():
                raise ValueError(f'unknown sampling parameter "{name}"')
        words = answer_to(prompt, most_words(given.get("max_tokens", DEFAULT_MAX_TOKENS)))
        time.sleep(self.seconds_per_token * len(words))
        if stream:
            return [response(word) for word in words]
        return [response(("" if exclude else prompt) + "".join(words))]


def parameters_of(request):
    """Return the sampling parameters: the tensor if there is one, else the request's own."""
    text = read(request, "sampling_parameters", b"").decode("utf-8") or request.parameters() or "{}"
    try:
        given = json.loads(text)
    except RecursionError as error:
        raise ValueError("sampling_parameters is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"sampling_parameters is not valid JSON: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"sampling_parameters must be a JSON object, not {type(given).__name__}")
    return given


def most_words(max_tokens):
    """Return how many words an answer has at most; None, as for vLLM, sets no limit."""
    if max_tokens is None:
        return None
    try:
        whole = int(max_tokens)
        if whole < 1 or whole != float(max_tokens):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"max_tokens must be a whole number, at least 1, not {str(max_tokens)[:40]}") from error
    return whole


def answer_to(prompt, most):
    """Return the words of the answer, each with the space that stands before it."""
    question = USER_MESSAGE.search(prompt)
    answer = "(stand-in) You asked: " + (question.group(1) if question else prompt).strip()
    return re.findall(r"\s*\S+", answer)[:most]


def response(text):
    """Return a response with one text."""
    tensor = pb_utils.Tensor("text_output", np.array([text.encode("utf-8")], dtype=np.object_))
    return pb_utils.InferenceResponse(output_tensors=[tensor])


def read(request, name, default):
    """Return the only value of an input tensor, or the default if the request does not have it."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1)[0]
