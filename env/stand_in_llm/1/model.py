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
CONTEXT = 2048  # words that a prompt has at most: the kit's engines are started with that many tokens
MOST_SEQUENCES = 64  # as the kit's vLLM backend
ADVANTAGE = 1.0  # how much likelier, as a logit, the question's own next word is than each of its other words
# vLLM's names of sampling parameters: a misspelt one is an error here too. max_tokens, temperature, top_k, seed, n and
# stop do what they do there, the others change nothing
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
                time.sleep(self.seconds_per_token)
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
        if (size := len(prompt.split())) >= CONTEXT:
            raise ValueError(f"the prompt has {size} words; this stand-in's context holds {CONTEXT}")
        sequences = sequences_of(prompt, parameters_of(request))
        longest = max(len(words) for words, _ in sequences)
        told = {"num_input_tokens": np.array([size], dtype=np.uint32)}
        if stream:
            time.sleep(self.seconds_per_token)
            return [response(request, sequences, told, at, at + 1) for at in range(longest)]
        time.sleep(self.seconds_per_token * longest)
        return [response(request, sequences, told, 0, longest, "" if exclude else prompt)]


def sequences_of(prompt, given):
    """Return the words of each sequence that is asked for, and why it ends there."""
    for name in given:
        if name not in KNOWN.split():
            raise ValueError(f'unknown sampling parameter "{name}"')
    most, count = whole_number(given, "max_tokens", DEFAULT_MAX_TOKENS), whole_number(given, "n", 1) or 1
    if count > MOST_SEQUENCES:
        raise ValueError(f"n must be at most {MOST_SEQUENCES}, got {count}")
    seed = number_of(given, "seed", -math.inf)
    draw = random.Random(None if seed == -1 else seed)  # noqa: S311 - for words; -1 is no seed, as for vLLM
    return [ended(sampled(answer_to(prompt), given, draw), most, stops_of(given)) for _ in range(count)]


def ended(words, most, stops):
    """Return an answer's words up to its end, and `length` if the limit ends it, else `stop`."""
    text = "".join(words[:most])
    ends = [text.find(stop) for stop in stops if stop in text]
    if ends:
        return re.findall(r"\s*\S+(?:\s+$)?", text[: min(ends)]) or [""], "stop"
    return words[:most], "length" if most is not None and most < len(words) else "stop"


def stops_of(given):
    """Return the texts that end an answer."""
    stop = given.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise ValueError("stop must be a text, or a list of texts, none of them empty")
    return stops


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


def whole_number(given, name, default):
    """Return a whole number among the sampling parameters; None, as for vLLM, sets no limit."""
    value = given.get(name, default)
    if value is None:
        return None
    try:
        whole = int(value)
        if whole < 1 or whole != float(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be a whole number, at least 1, not {str(value)[:40]}") from error
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
    questions = USER_MESSAGE.findall(prompt)
    answer = "(stand-in) You asked: " + (questions[-1] if questions else prompt).strip()
    return re.findall(r"\s*\S+", answer)


def sampled(words, given, draw):
    """Return as many words, each drawn from the question's; greedy unless the temperature is above 0.

    The same seed draws the same words again. Without one every answer is drawn anew.
    """
    temperature = number_of(given, "temperature", 0) or 0
    most_likely = number_of(given, "top_k", -1)
    choices = words[3:]  # what stands before the question is said in any case
    if temperature == 0 or most_likely == 1 or len(choices) < 2:
        return words
    advantage = math.exp(min(ADVANTAGE / temperature, 50))  # bounded: a tiny temperature is greedy, not an overflow
    rows = [[advantage if one == place else 1 for one in range(len(choices))] for place in range(len(choices))]
    return words[:3] + [draw.choices(choices, row)[0] for row in rows]


def response(request, sequences, told, begin, end, echo=""):
    """Return a response with some words of each sequence, and what else is asked for about them."""
    parts = ["".join(words[begin:end]) for words, _ in sequences]
    reasons = [reason if end >= len(words) else "None" for words, reason in sequences]
    counts = [len(words[begin:end]) for words, _ in sequences]
    values = {
        "text_output": texts(echo + part for part in parts),
        "finish_reason": texts(reasons),
        "num_output_tokens": np.array(counts, dtype=np.uint32),
        **told,
    }
    asked = [name for name in values if name == "text_output" or read(request, "return_" + name, False)]
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, values[name]) for name in asked])


def texts(values):
    """Return the values of a STRING tensor."""
    return np.array([value.encode("utf-8") for value in values], dtype=np.object_)


def read(request, name, default):
    """Return the only value of an input tensor, or the default if the request does not have it."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else tensor.as_numpy().reshape(-1)[0]
