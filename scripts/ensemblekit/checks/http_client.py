# SPDX-License-Identifier: Apache-2.0
"""Exercise 5: a request over HTTP, and a client that takes no error for an answer."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from ensemblekit.checks.task import Mistake, excerpt, task

__all__ = ["noticing", "sent"]

MOST_TOKENS = 8
TIMEOUT_S = 60.0
LIMIT = json.dumps({"max_tokens": MOST_TOKENS})


@task("the question was sent, and the answer is there")
def sent(url: str, question: str, body: Any, response: Any) -> Iterator[Mistake]:
    """Check the body of a request, and that the response is the answer to it."""
    if isinstance(body, str | bytes):
        yield Mistake("a body that is text", "httpx makes the JSON itself: give it the dictionary")
    if not isinstance(body, dict):
        yield Mistake(f"a {type(body).__name__}", "the body is a dictionary of input names and values")
    if "chat_input" not in body:
        names = ", ".join(body)
        yield Mistake(f"the names {names}", "the ensemble's input for the question is chat_input")
    if body["chat_input"] != question:
        yield Mistake(excerpt(body["chat_input"]), "ask the question above: the variable `question`, as it is")
    if body.get("stream"):
        yield Mistake("a body with stream", "leave the stream for the next section: here one whole answer is wanted")
    yield from _of_limit(body)
    yield from _of_response(body, response)
    expected = _post(url, {"chat_input": question, "sampling_parameters": LIMIT}).json()["text_output"]
    if response.json()["text_output"] != expected:
        yield Mistake(excerpt(response.json()["text_output"]), "the answer is another one than with max_tokens 8 alone")


def _of_limit(body: dict[str, Any]) -> Iterator[Mistake]:
    given = body.get("sampling_parameters")
    if given is None:
        if body.get("max_tokens") == MOST_TOKENS:  # a parameter of the request: the ensemble takes it too
            return
        yield Mistake(
            "no limit: no max_tokens anywhere", "the answer is to have at most 8 tokens: sampling_parameters says so"
        )
    if not isinstance(given, str):
        about = f"sampling_parameters is a {type(given).__name__}"
        yield Mistake(about, "the tensor is a STRING: give the JSON as a text, json.dumps makes one")
    try:
        parameters = json.loads(given or "")
    except ValueError:
        yield Mistake(excerpt(given), "the text is no JSON: names stand in double quotes, json.dumps gets that right")
        return
    if not isinstance(parameters, dict):
        about = f"a JSON {type(parameters).__name__}: {excerpt(given)}"
        yield Mistake(about, "one JSON object, made once: names and values in braces")
    if "max_tokens" not in parameters:
        yield Mistake(f"{given}: no max_tokens", "the limit is called max_tokens, as in exercise 4")
    if parameters["max_tokens"] != MOST_TOKENS:
        yield Mistake(f"max_tokens {parameters['max_tokens']!r}", "the task asks for at most 8 tokens, as a number")


def _of_response(body: dict[str, Any], response: Any) -> Iterator[Mistake]:
    if isinstance(response, dict | str):
        yield Mistake(
            f"a {type(response).__name__}", "keep the response itself: its json() and status_code are read below"
        )
    if not isinstance(response, httpx.Response):
        yield Mistake(f"a {type(response).__name__}", "httpx.post(...) returns the response")
    if response.request.method != "POST":
        yield Mistake(f"a {response.request.method} request", "the generate endpoint wants a POST, with the body")
    if response.status_code != httpx.codes.OK:
        about = f"HTTP {response.status_code} {excerpt(response.text)}"
        yield Mistake(about, "read the server's words: is the address `url`, and the body given as json=body?")
    if json.loads(response.request.content or b"null") != body:
        yield Mistake("the response to another request", "send this body: httpx.post(url, json=body, timeout=60)")
    if "text_output" not in response.json():
        yield Mistake(excerpt(response.text), "no answer in it: is the address `url`, which ends in /generate?")


@task("the client returns texts and notices every error")
def noticing(url: str, question: str, generate: Callable[..., Any]) -> Iterator[Mistake]:
    """Check a client with a good request, two bad ones and the trap."""
    yield from _of_good(url, question, generate)
    bad_json = {"sampling_parameters": "{max_tokens: 8}"}
    cases = {
        "an empty question": ("", dict[str, Any]()),
        "parameters that are no JSON": (question, bad_json),
        "the trap, stream=True": (question, {"stream": True}),
    }
    for what, (text, inputs) in cases.items():
        words = _post(url, {"chat_input": text, **inputs}).json()["error"]
        try:
            result = generate(text, **inputs)
        except RuntimeError as error:
            if words not in str(error) and json.dumps(words)[1:-1] not in str(error):
                about = f"{what}: RuntimeError({excerpt(str(error))})"
                yield Mistake(about, "pass on the server's own words: they stand in the body, under `error`")
        except Exception as error:
            about = f"{what}: {type(error).__name__}: {excerpt(str(error))}"
            yield Mistake(about, "raise a RuntimeError yourself, before you read a key that is not there")
        else:
            yield _not_noticed(what, result, words)


def _not_noticed(what: str, result: object, words: str) -> Mistake:
    if isinstance(result, str) and words in result:
        return Mistake(
            f"{what}: the error came back as an answer", "raise RuntimeError with these words: do not return them"
        )
    if "trap" in what:
        about = f"{what}: {excerpt(result)} came back"
        return Mistake(about, "the status is 200 here: look whether there is a text_output, whatever the status")
    return Mistake(
        f"{what}: {excerpt(result)} came back", "the caller cannot tell that from an answer: raise a RuntimeError"
    )


def _of_good(url: str, question: str, generate: Callable[..., Any]) -> Iterator[Mistake]:
    expected = _post(url, {"chat_input": question, "sampling_parameters": LIMIT}).json()["text_output"]
    try:
        text = generate(question, sampling_parameters=LIMIT)
    except TypeError as error:
        yield Mistake(f"TypeError: {error}", "keep the head of the function: **inputs takes any further input")
        return
    except RuntimeError as error:
        about = f"a good request raises RuntimeError: {excerpt(str(error))}"
        yield Mistake(about, "raise only where there is no text_output, or the status is not 200")
        return
    if text is None:
        yield Mistake("a good request returns nothing", "return the text: what stands under text_output")
    if isinstance(text, httpx.Response | dict):
        yield Mistake(
            f"a good request returns a {type(text).__name__}", "return the text alone: what stands under text_output"
        )
    if text != expected and isinstance(text, str) and text.startswith(expected):
        yield Mistake(
            excerpt(text), "the limit does not reach the server: pass the further inputs on, **inputs, in the body"
        )
    if text != expected:
        yield Mistake(excerpt(text), "ask the question that is given, and return text_output as it is")


def _post(url: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(url, json=body, timeout=TIMEOUT_S)
