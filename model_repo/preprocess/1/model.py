# SPDX-License-Identifier: Apache-2.0
"""Puts the chat template around a question or a conversation and completes the sampling parameters.

`chat_input` is a conversation if it is a JSON list that is empty or holds an object with "role"; else it is a question,
whatever it begins with. Nothing is tokenised here: the text goes to the language model, which encodes it once.
"""

import json
import locale
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# What SmolLM2's own template puts first where there is no system message.
SYSTEM = {"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


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
        self.added_in_front = mark_in_front(self.tokenizer) if name else ""

    def execute(self, requests):
        """Answer each request on its own: a bad one gets an error, its neighbours are not touched."""
        return [self.respond(request) for request in requests]

    def respond(self, request):
        """Return the response to one request."""
        try:
            chat = read_chat(read(request, "chat_input").decode("utf-8"))
            outputs = [
                text_tensor("text_input", self.prompt(chat)),
                text_tensor("sampling_parameters", json.dumps(self.sampling_parameters(request))),
                flag_tensor("stream", bool(read(request, "stream", default=False))),
                flag_tensor("exclude_input_in_output", True),
            ]
        except RecursionError:
            return refusal("sampling_parameters is nested too deeply")
        except (BadRequest, UnicodeError) as error:
            return refusal(str(error))
        return pb_utils.InferenceResponse(output_tensors=outputs)

    def prompt(self, chat):
        """Return the text that the language model continues."""
        if self.tokenizer is None:
            turns = chat if chat[0]["role"] == "system" else [SYSTEM, *chat]
            text = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
            return text + "<|im_start|>assistant\n"
        try:
            text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template raises what it likes, about roles that do not alternate for example
            raise BadRequest(f"the model's chat template refuses this conversation: {error}") from error
        return text.removeprefix(self.added_in_front)

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


def read_chat(text):
    """Return the messages of a conversation; a question becomes the only user message of one."""
    if not text.strip():
        raise BadRequest("chat_input is empty: there is no question to answer")
    messages = parse_list(text)
    if messages is None or (messages and not any(isinstance(one, dict) and "role" in one for one in messages)):
        return [{"role": "user", "content": text}]
    if not messages:
        raise BadRequest("chat_input is a conversation without a message")
    return [read_message(f"message {number} of chat_input", one) for number, one in enumerate(messages, 1)]


def parse_list(text):
    """Return the list that a text is in JSON, None if it is none."""
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return value


def read_message(name, message):
    """Return a message as templates know it: its content is one text; what else it has is left to the template."""
    if not isinstance(message, dict):
        raise BadRequest(f'{name} must be an object such as {{"role": "user", "content": "Hi"}}')
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRequest(f"{name} has the role {str(role)[:40]!r}; it must be one of {', '.join(ROLES)}")
    if content is None and message.get("tool_calls"):  # an assistant that only calls tools says nothing
        content = ""
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise BadRequest(f"{name} has a part that is no text; this model takes text alone")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRequest(f"{name} has no content; it must be a text")
    return {**message, "role": ROLES[role], "content": content}


def mark_in_front(tokenizer):
    """Return the mark that the tokenizer puts before every text; that of a template that writes it too is taken off."""
    mark = tokenizer.bos_token
    return mark if mark and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else ""


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
    import transformers

    # AutoTokenizer imports torch: seconds of processor time, which the language model's start needs as well.
    plain = tokenizer_class(name) in ("PreTrainedTokenizerFast", "TokenizersBackend")
    kind = transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer
    tokenizer = kind.from_pretrained(name)
    if not tokenizer.chat_template:
        raise pb_utils.TritonModelException(f"the tokenizer {name} has no chat template")
    return tokenizer


def tokenizer_class(name):
    """Return the class that a tokenizer's folder names; None where it names none, or the tokenizer is on the hub."""
    path = Path(name) / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class") if path.is_file() else None


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
