# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the language model: says that it is one, and repeats the question, word by word."""

import json
import math
import random
import re
import time

import numpy as np
import triton_python_backend_utils as pb_utils

DEFAULT_MAX_TOKENS = 16  # vLLM's own default; a word counts as a token here
ADVANTAGE = 1.0  # how much likelier, as a logit, the question's own next word is than each of its other words
# vLLM's names of sampling parameters: a misspelt one is an error here too. max_tokens, temperature, top_k and seed do
# what they do there, the others change nothing
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
        words = sampled(answer_to(prompt), given)[: most_words(given.get("max_tokens", DEFAULT_MAX_TOKENS))]
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


def number_of(given, name, least):
    """Return a number among the sampling parameters, or None if it is not given."""
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise ValueError(f"{name} must be a number, at least {least}, not {str(value)[:40]}")
    return value


def answer_to(prompt):
    """Return the words of the greedy answer, each with the space that stands before it."""
    question = USER_MESSAGE.search(prompt)
    answer = "(stand-in) You asked: " + (question.group(1) if question else prompt).strip()
    return re.findall(r"\s*\S+", answer)


def sampled(words, given):
    """Return as many words, each drawn from the question's; greedy unless the temperature is above 0.

    The same seed draws the same words again. Without one every answer is drawn anew.
    """
    temperature = number_of(given, "temperature", 0) or 0
    seed, most_likely = number_of(given, "seed", -math.inf), number_of(given, "top_k", -1)
    choices = words[3:]  # what stands before the question is said in any case
    if temperature == 0 or most_likely == 1 or len(choices) < 2:
        return words
    draw = random.Random(None if seed == -1 else seed)  # noqa: S311 - for words; -1 is no seed, as for vLLM
    advantage = math.exp(min(ADVANTAGE / temperature, 50))  # bounded: a tiny temperature is greedy, not an overflow
    rows = [[advantage if one == place else 1 for one in range(len(choices))] for place in range(len(choices))]
    return words[:3] + [draw.choices(choices, row)[0] for row in rows]


def response(text):
    """Return a response with one text."""
    tensor = pb_utils.Tensor("text_output", np.array([text.encode("utf-8")], dtype=np.object_))
    return pb_utils.InferenceResponse(output_tensors=[tensor])


def read(request, name, default):
    """Return the only value of an input tensor, or the default if the request does not have it."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1)[0]
