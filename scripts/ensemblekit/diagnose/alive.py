# SPDX-License-Identifier: Apache-2.0
"""Does a model still answer? Triton's ready stays 200 when a stub or a vLLM engine has died; a question tells.

Made for a container's or Kubernetes' probe: over HTTP alone, with one deadline for all of it.
"""

import json
import math
import time
from dataclasses import dataclass
from typing import Any

import httpx

from ensemblekit.errors import ParameterError
from ensemblekit.faults.catalogue import fault

__all__ = ["DEADLINE_S", "LONGEST_ANSWER", "Alive", "ask_alive"]

DEADLINE_S = 5.0  # a token of a busy engine takes well under a second
LONGEST_ANSWER = 1 << 20  # bytes; an index of 10 000 models has half of it
QUESTION = "Say yes."
ONE_TOKEN = json.dumps({"max_tokens": 1, "temperature": 0})
SAMPLING = "sampling_parameters"
SEVERAL = fault("T303")  # generate's words for a model with several responses: it has answered


@dataclass(frozen=True)
class Alive:
    """The verdict: whether the model answered, which one it was, what was found, and after how long (s)."""

    alive: bool
    model: str
    found: str
    elapsed_s: float

    def __str__(self) -> str:
        """One line for a probe's log."""
        name = self.model or "server"
        return f"{'alive' if self.alive else 'not alive'}: {name} {self.found} after {self.elapsed_s:.2f} s"


class _NoAnswerError(Exception):
    """The server did not answer, or not with what is needed; the text says what was found."""


class _Endpoint:
    """A server's HTTP endpoint with one deadline for everything that is asked of it."""

    def __init__(self, url: str, deadline_s: float) -> None:
        self.base = f"http://{url.removeprefix('http://').rstrip('/')}/v2"
        self.began, self.deadline_s = time.monotonic(), deadline_s
        self.client = httpx.Client(trust_env=False)

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the begin."""
        return time.monotonic() - self.began

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the JSON of one answer.

        Raises:
            _NoAnswerError: None came in time, or it is too long or no JSON.
        """
        try:
            with self.client.stream(
                "GET" if body is None else "POST", f"{self.base}/{path}", json=body, timeout=self._left_s()
            ) as answer:
                content = bytearray()
                for piece in answer.iter_raw():  # undecoded: a small answer may unpack to gigabytes
                    content += piece
                    self._left_s()
                    if len(content) > LONGEST_ANSWER:
                        raise _NoAnswerError(f"sent more than {LONGEST_ANSWER} bytes")
                return answer.status_code, json.loads(content)
        except httpx.TimeoutException as error:
            raise _NoAnswerError(f"gave no answer within {self.deadline_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _NoAnswerError(f"is not reachable ({type(error).__name__})") from error
        except (ValueError, RecursionError) as error:
            raise _NoAnswerError("answered with something that is not JSON") from error

    def _left_s(self) -> float:
        left = self.deadline_s - self.elapsed_s
        if left <= 0:
            raise _NoAnswerError(f"gave no answer within {self.deadline_s:g} s")
        return left


def ask_alive(url: str, model: str = "", *, deadline_s: float = DEADLINE_S) -> Alive:
    """Ask a model one small question and return whether it answered in time.

    Args:
        url: `host:port` of the server's HTTP endpoint.
        model: The model to ask; without it the ensemble that is no step of another one, of several the one that
            needs the fewest inputs; without any ensemble the only model.
        deadline_s: Seconds for everything.

    Raises:
        ParameterError: The deadline is no positive number of seconds.
    """
    if not (math.isfinite(deadline_s) and deadline_s > 0):
        raise ParameterError(
            f"ask within {deadline_s} s", found="no positive number", hint="for example `--deadline 5`"
        )
    endpoint = _Endpoint(url, deadline_s)
    with endpoint.client:
        try:
            model = model or _top_model(endpoint)
            return Alive(True, model, _question(endpoint, model), endpoint.elapsed_s)
        except _NoAnswerError as error:
            return Alive(False, model, str(error), endpoint.elapsed_s)


def _question(endpoint: _Endpoint, model: str) -> str:
    """Return how the model answered."""
    status, config = endpoint.ask(f"models/{model}/config")
    if status != httpx.codes.OK:
        raise _NoAnswerError(f"has no config to read: {_error(status, config)}")
    status, answer = endpoint.ask(f"models/{model}/generate", _request(config))
    if status == httpx.codes.OK and "error" in answer and SEVERAL.match(str(answer["error"])):
        return "answered with several responses"
    if (
        status != httpx.codes.OK or not isinstance(answer, dict) or "error" in answer
    ):  # 200 with an error: a late failure
        raise _NoAnswerError(f"failed: {_error(status, answer)}")
    return "answered"


def _request(config: Any) -> dict[str, Any]:
    """Return a small value for each input that must be there."""
    inputs = config.get("input", []) if isinstance(config, dict) else []
    body = {tensor["name"]: _values(tensor) for tensor in _needed(config)}
    if any(tensor["name"] == SAMPLING for tensor in inputs):
        body[SAMPLING] = ONE_TOKEN
    return body


def _needed(config: Any) -> list[dict[str, Any]]:
    """Return the inputs that must be there."""
    inputs = config.get("input", []) if isinstance(config, dict) else []
    return [tensor for tensor in inputs if not tensor.get("optional")]


def _values(tensor: dict[str, Any]) -> Any:
    kind, count = str(tensor["data_type"]), math.prod(max(1, int(dim)) for dim in tensor.get("dims", []))
    if kind == "TYPE_STRING":
        value: Any = QUESTION
    elif kind == "TYPE_BOOL":
        value = False
    else:
        value = 1
    return value if count == 1 else [value] * count


def _top_model(endpoint: _Endpoint) -> str:
    """Return the model that clients are meant to ask."""
    status, index = endpoint.ask("repository/index", {})
    if status != httpx.codes.OK or not isinstance(index, list):
        raise _NoAnswerError(f"does not list its models ({_error(status, index)}): name the model")
    ready = [str(row["name"]) for row in index if row.get("state") == "READY"]
    steps, ensembles = set[str](), dict[str, int]()
    for name in ready:
        config = endpoint.ask(f"models/{name}/config")[1]
        scheduling = config.get("ensemble_scheduling", {})
        steps |= {step["model_name"] for step in scheduling.get("step", [])}
        if scheduling:
            ensembles[name] = len(_needed(config))
    tops = {name: count for name, count in ensembles.items() if name not in steps}
    # `serve --openai` has a second one, whose further inputs ask for further outputs
    candidates = [name for name, count in tops.items() if count == min(tops.values())] or ready
    if len(candidates) != 1:
        names = ", ".join(candidates[:5]) or "none"
        raise _NoAnswerError(f"has not one model to ask but {len(candidates)} ({names}): name the model")
    return candidates[0]


def _error(status: int, content: Any) -> str:
    said = content.get("error", "") if isinstance(content, dict) else ""
    return f"HTTP {status} {said}".strip()[:300]
