# SPDX-License-Identifier: Apache-2.0
"""One request to a model that is known only by its config: which model, with which tensors, over which endpoint."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from ensemblekit.clients.grpc import Served, stream_results
from ensemblekit.errors import KitError, ParameterError, RequestError
from ensemblekit.faults.catalogue import fault
from ensemblekit.repository.config import ensemble_steps
from ensemblekit.repository.read import read_config

__all__ = ["build_request", "entry_model", "is_decoupled", "send", "server_config"]

ASK_TIMEOUT_S = 5.0
EXCERPT = 200  # characters of an answer
# a plain value of each kind: what a reader would type first
TEXT, NUMBER, FRACTION = "What is the capital of France?", 1, 0.5
FREE_DIM = 1  # a dimension of -1 may have any size

Config = dict[str, Any]
SEVERAL = fault("T303")  # generate's words for a model with several responses


def entry_model(repository: Path) -> str:
    """Return the model that clients are meant to ask: the ensemble that is no step of another one.

    Without an ensemble it is the only model, or the first by name.

    Raises:
        ParameterError: There is no model.
    """
    steps, ensembles, models = set[str](), list[str](), list[str]()
    for file in sorted(repository.glob("*/config.pbtxt")):
        try:
            config = read_config(file)
        except KitError:
            continue  # lint has said so
        models.append(file.parent.name)
        found = ensemble_steps(config)
        steps |= {step.model for step in found}
        ensembles += [file.parent.name] if found else []
    folders = sorted(folder.name for folder in repository.iterdir() if folder.is_dir())
    top = [name for name in ensembles if name not in steps] or ensembles
    if names := (top or [name for name in models if name not in steps] or folders):
        return names[0]
    raise ParameterError(
        f"ask a model of {repository}", found="no model folder in it", hint="give the folder that holds the models"
    )


def server_config(server: Served, model: str) -> Config:
    """Return a model's config as the server completed it.

    Raises:
        RequestError: It does not say.
    """
    url = f"http://{server.http_url}/v2/models/{model}/config"
    try:
        answer = httpx.get(url, timeout=ASK_TIMEOUT_S, trust_env=False)
        content = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise RequestError(
            f"read the config of {model}", found=f"{type(error).__name__}: {error}", hint=f"try `curl {url}`"
        ) from error
    if answer.status_code != httpx.codes.OK:
        raise RequestError(
            f"read the config of {model}",
            found=f"HTTP {answer.status_code} {content.get('error', '')}",
            hint="`--model` names another one; the index lists what is loaded",
        )
    return dict(content)


def is_decoupled(server: Served, config: Config) -> bool:
    """Return whether a model, or a step of it, may send any number of responses to one request.

    Raises:
        RequestError: The server does not say.
    """
    if config.get("model_transaction_policy", {}).get("decoupled"):
        return True
    steps = config.get("ensemble_scheduling", {}).get("step", [])
    return any(is_decoupled(server, server_config(server, step["model_name"])) for step in steps)


def build_request(config: Config, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the values of a request, by input: what is given, else a plain value for each required input.

    Args:
        config: The model's config.
        given: Values by input, a single one or a list.

    Raises:
        ParameterError: A value is given for an input that the model does not have, or one is of no known type.

    >>> build_request({"input": [{"name": "TEXT", "data_type": "TYPE_STRING", "dims": [1]}]}, {"TEXT": "Hi"})
    {'TEXT': ['Hi']}
    """
    inputs = {tensor["name"]: tensor for tensor in config.get("input", [])}
    for name in given or {}:
        if name not in inputs:
            raise ParameterError(
                f"send {name}", found=f"the inputs of {config.get('name')} are {', '.join(inputs)}", hint="--request"
            )
    values = dict[str, Any]()
    for name, tensor in inputs.items():
        if given is not None and name in given:
            value = given[name]
            values[name] = value if isinstance(value, list) else [value]
        elif not tensor.get("optional"):
            values[name] = [_plain(tensor)] * math.prod(_dims(tensor))
    return values


def _dims(tensor: Config) -> list[int]:
    return [FREE_DIM if int(dim) < 0 else int(dim) for dim in tensor.get("dims", [])]


def _plain(tensor: Config) -> str | bool | int | float:
    kind = str(tensor["data_type"])
    if kind == "TYPE_STRING":
        return TEXT
    if kind == "TYPE_BOOL":
        return False
    return FRACTION if kind.startswith(("TYPE_FP", "TYPE_BF")) else NUMBER


def send(server: Served, config: Config, values: Mapping[str, Any], *, generate: bool, timeout_s: float) -> str:
    """Send one request and return the answer's outputs as text.

    Args:
        server: A running server.
        config: The model's config, as `server_config` returns it.
        values: The request, as `build_request` returns it.
        generate: Over HTTP's generate endpoint, the usual way to a decoupled model; else over a gRPC stream. A
            model that sends several responses to it is asked over the stream too.
        timeout_s: Seconds without any response after which it is given up.

    Raises:
        RequestError: The server refused, failed, or did not answer in time.
    """
    if generate:
        try:
            answer = _generate(server, config, values, timeout_s)
        except RequestError as error:
            if not SEVERAL.match(error.found):
                raise
            answer = _infer(server, config, values, timeout_s)
    else:
        answer = _infer(server, config, values, timeout_s)
    return json.dumps(answer, ensure_ascii=False)[:EXCERPT]


def _generate(server: Served, config: Config, values: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    url = f"http://{server.http_url}/v2/models/{config['name']}/generate"
    body = {name: value[0] if len(value) == 1 else value for name, value in values.items()}
    try:
        answer = httpx.post(url, json=body, timeout=timeout_s, trust_env=False)
        content = answer.json()
    except httpx.ReadTimeout as error:
        raise _failed(config, f"no response within {timeout_s:g} s") from error
    except (httpx.HTTPError, ValueError) as error:
        raise _failed(config, f"{type(error).__name__}: {error}") from error
    if answer.status_code != httpx.codes.OK or "error" in content:  # 200 with an error in it: a late failure
        raise _failed(config, f"HTTP {answer.status_code}: {content.get('error', answer.text[:EXCERPT])}")
    outputs = {tensor["name"] for tensor in config.get("output", [])}
    return {name: value for name, value in content.items() if name in outputs}


def _infer(server: Served, config: Config, values: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    found = dict[str, Any]()
    for result in _stream(server, config, _tensors(config, values), timeout_s):
        for output in result.get_response().outputs:
            found.setdefault(output.name, []).extend(_listed(result.as_numpy(output.name)))
    return found


def _tensors(config: Config, values: Mapping[str, Any]) -> list[triton.InferInput]:
    batched = int(config.get("max_batch_size", 0)) > 0
    tensors = list[triton.InferInput]()
    for tensor in config.get("input", []):
        name, kind = tensor["name"], str(tensor["data_type"]).removeprefix("TYPE_").replace("STRING", "BYTES")
        if name not in values:
            continue
        shape = _dims(tensor) if math.prod(_dims(tensor)) == len(values[name]) else [len(values[name])]
        shape = [1, *shape] if batched else shape
        array = _array(name, values[name], kind).reshape(shape)
        tensors.append(triton.InferInput(name, shape, kind))
        tensors[-1].set_data_from_numpy(array)
    return tensors


def _array(name: str, values: list[Any], kind: str) -> Any:
    dtype = triton_to_np_dtype(kind)
    try:
        if dtype is not None:
            return np.array(values, dtype=dtype)
        found = f"numpy has no type for {kind}"
    except (TypeError, ValueError, OverflowError) as error:
        found = str(error)
    raise ParameterError(f"send {values} as {name} ({kind})", found=found, hint="give a value of its type: --request")


def _stream(
    server: Served, config: Config, inputs: list[triton.InferInput], timeout_s: float
) -> Iterator[triton.InferResult]:
    try:
        yield from stream_results(server, config["name"], inputs, timeout_s)
    except TimeoutError:
        raise _failed(config, f"no response within {timeout_s:g} s") from None
    except InferenceServerException as error:
        raise _failed(config, f"the server says: {error.message()}") from error


def _listed(array: Any) -> list[Any]:
    values = array.reshape(-1).tolist()
    return [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]


def _failed(config: Config, found: str) -> RequestError:
    return RequestError(f"get an answer from {config.get('name')}", found=found, hint="the server's log says more")
