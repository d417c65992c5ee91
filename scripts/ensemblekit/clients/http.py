# SPDX-License-Identifier: Apache-2.0
"""Triton's HTTP endpoints: generate (the shell way to a decoupled model) and control of the repository."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from ensemblekit.clients.grpc import (
    ENSEMBLE,
    REQUEST_TIMEOUT_S,
    Controlled,
    Served,
    ended,
    key_headers,
    request_body,
)
from ensemblekit.errors import RequestError

__all__ = [
    "LoadAnswer",
    "answers_ok",
    "ask_http",
    "curl_command",
    "generate_url",
    "load_model",
    "model_states",
    "stream_http",
]

EXCERPT = 500  # characters of an answer that is no JSON, enough to see what answered
READY_ANSWER_S = 2.0  # one readiness question
CONTROL_TIMEOUT_S = 600.0  # loading a model answers when it is loaded


@dataclass(frozen=True)
class LoadAnswer:
    """What the server answered to a request to load a model."""

    status: int
    body: str

    def __str__(self) -> str:
        return f"HTTP {self.status} {self.body}".strip()

    __repr__ = __str__


def curl_command(
    server: Served, text: str, *, model: str = ENSEMBLE, sampling_parameters: Mapping[str, Any] | None = None
) -> str:
    """Return the command with which a reader asks the same in a shell; a seat puts in its key."""
    body = json.dumps(request_body(text, model=model, sampling_parameters=sampling_parameters))
    key = "-u YOUR_KEY: " if key_headers(server) else ""
    return f"curl -s {key}{_endpoint(server, model, 'generate')} -d {shlex.quote(body)}"


def generate_url(server: Served) -> str:
    """Return the address of the ensemble's generate endpoint; a seat's key, if it has one, stands before its @."""
    address = _endpoint(server, ENSEMBLE, "generate")
    key = key_headers(server).get("authorization", "").removeprefix("Bearer ")
    return address.replace("://", f"://{key}@") if key else address


def _endpoint(server: Served, model: str, way: str) -> str:
    return f"http://{server.http_url}/v2/models/{model}/{way}"


def ask_http(
    server: Served,
    text: str,
    *,
    model: str = ENSEMBLE,
    sampling_parameters: Mapping[str, Any] | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> str:
    """Return the answer to one question over the generate endpoint.

    Raises:
        RequestError: The server refused, failed or did not answer within `timeout_s` seconds.
    """
    url = _endpoint(server, model, "generate")
    body = request_body(text, model=model, sampling_parameters=sampling_parameters)
    try:
        answer = _post(url, body, timeout_s, key_headers(server))
    except RequestError as error:
        raise (ended(server, model) or error) from error
    content = _json(answer)
    # Triton answers 200 with an error in the body when a decoupled model fails late
    if answer.status_code != httpx.codes.OK or "text_output" not in content:
        raise _failed(url, _said(answer))
    return str(content["text_output"])


def stream_http(
    server: Served,
    text: str,
    *,
    model: str = ENSEMBLE,
    sampling_parameters: Mapping[str, Any] | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> Iterator[str]:
    """Yield the pieces of an answer over the generate_stream endpoint (server-sent events).

    Raises:
        RequestError: The server refused, failed or sent nothing for `timeout_s` seconds.
    """
    url = _endpoint(server, model, "generate_stream")
    body = request_body(text, model=model, sampling_parameters=sampling_parameters, stream=True)
    try:
        headers = key_headers(server)
        with httpx.stream("POST", url, json=body, timeout=timeout_s, headers=headers, trust_env=False) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise _failed(url, _said(answer))
            for line in answer.iter_lines():
                if line.startswith("data:"):
                    content = json.loads(line.removeprefix("data:"))
                    if "error" in content:
                        raise _failed(url, str(content["error"]))
                    yield str(content["text_output"])
    except httpx.TransportError as error:
        raise (ended(server, model) or _failed(url, _why(error, timeout_s))) from error


def load_model(server: Controlled, model: str, *, timeout_s: float = CONTROL_TIMEOUT_S) -> LoadAnswer:
    """Ask the server to load a model (explicit mode only) and return its answer, whatever it is.

    Raises:
        RequestError: No answer came.
    """
    answer = _post(f"http://{server.http_url}/v2/repository/models/{model}/load", {}, timeout_s, server.control_headers)
    return LoadAnswer(answer.status_code, answer.text)


def model_states(server: Controlled) -> dict[str, str]:
    """Return the state of each model in the server's index; a model without one has the state "(none)".

    Raises:
        RequestError: No answer came.
    """
    answer = _post(f"http://{server.http_url}/v2/repository/index", {}, REQUEST_TIMEOUT_S, server.control_headers)
    return {row["name"]: row.get("state", "(none)") for row in sorted(answer.json(), key=lambda row: str(row["name"]))}


def _post(
    url: str, body: Mapping[str, Any], timeout_s: float, headers: Mapping[str, str] | None = None
) -> httpx.Response:
    try:
        return httpx.post(url, json=body, timeout=timeout_s, headers=headers, trust_env=False)
    except httpx.TransportError as error:
        raise _failed(url, _why(error, timeout_s)) from error


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        content = answer.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _said(answer: httpx.Response) -> str:
    return f"HTTP {answer.status_code}: {_json(answer).get('error', answer.text[:EXCERPT])}"


def answers_ok(url: str) -> bool:
    """Return whether a page is answered with 200, within two seconds."""
    try:
        return httpx.get(url, timeout=READY_ANSWER_S, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _why(error: httpx.TransportError, timeout_s: float) -> str:
    if isinstance(error, httpx.ReadTimeout):
        return f"no response within {timeout_s:g} s"
    return f"{type(error).__name__}: {error}"


def _failed(url: str, found: str) -> RequestError:
    return RequestError(
        f"get an answer from {url}",
        found=found,
        hint="the server's log says more; correct the request as it says",
    )
