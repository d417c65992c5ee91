# SPDX-License-Identifier: Apache-2.0
"""One request to a model that is known only by its config: which model, with which tensors, over which endpoint."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from ensemblekit.clients.bounded import Asker
from ensemblekit.clients.grpc import Served, stream_results
from ensemblekit.diagnose.doctor.report import shortened
from ensemblekit.diagnose.probe.running import ModelConfig, Tensor, find_ensemble, loaded_models, model_config
from ensemblekit.errors import KitError, ParameterError, RequestError
from ensemblekit.faults.catalogue import fault
from ensemblekit.repository.read import read_config

__all__ = ["build_request", "entry_model", "is_decoupled", "loaded_ensemble", "send", "tensor_of"]

OK = 200
EXCERPT = 2000  # characters of a server's error: a stack of Python is among them
# a plain value of each kind: what a reader would type first
TEXT, NUMBER, FRACTION = "What is the capital of France?", 1, 0.5
LARGEST_TENSOR = 2**20  # values that are made up for one input
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
        found = {step.model_name for step in config.ensemble_scheduling.step}
        steps |= found
        ensembles += [file.parent.name] if found else []
    folders = sorted(folder.name for folder in repository.iterdir() if folder.is_dir())
    top = [name for name in ensembles if name not in steps] or ensembles
    if names := (top or [name for name in models if name not in steps] or folders):
        return names[0]
    raise ParameterError(
        f"ask a model of {repository}", found="no model folder in it", hint="give the folder that holds the models"
    )


def loaded_ensemble(asker: Asker) -> str:
    """Return an ensemble that a server has loaded, else the first of its models by name.

    Raises:
        RequestError: It does not say, or has loaded none.
    """
    names = loaded_models(asker)
    if names:
        return find_ensemble(asker, names) or names[0]
    raise RequestError("choose a model to ask", found="no model is loaded", hint="load one, or give a repository")


def is_decoupled(asker: Asker, config: ModelConfig) -> bool:
    """Return whether a model, or a step of it, may send any number of responses to one request.

    Raises:
        RequestError: The server does not say.
    """
    configs, seen = [config], {config.name}
    while configs:
        one = configs.pop()
        if one.model_transaction_policy.decoupled:
            return True
        new = set(one.steps) - seen
        seen |= new
        configs += [model_config(asker, name) for name in sorted(new)]
    return False


def build_request(config: ModelConfig, given: Mapping[str, Any] | None = None) -> dict[str, list[Any]]:
    """Return the values of a request, by input: what is given, else a plain value for each required input.

    Args:
        config: The model's config.
        given: Values by input, a single one or a list.

    Raises:
        ParameterError: A value is given for an input that the model does not have, or one is too large to make up.

    >>> build_request(ModelConfig(input=[Tensor(name="TEXT", data_type="TYPE_STRING", dims=[1])]), {"TEXT": "Hi"})
    {'TEXT': ['Hi']}
    """
    inputs = {tensor.name: tensor for tensor in config.input}
    given = given or {}
    for name in given:
        if name not in inputs:
            raise ParameterError(
                f"send {name}", found=f"the inputs of {config.name} are {', '.join(inputs)}", hint="--request"
            )
    values = dict[str, list[Any]]()
    for name, tensor in inputs.items():
        if name in given:
            values[name] = given[name] if isinstance(given[name], list) else [given[name]]
        elif not tensor.optional:
            values[name] = [_plain(tensor)] * _size(tensor)
    return values


def _size(tensor: Tensor) -> int:
    size = math.prod(_dims(tensor))
    if size > LARGEST_TENSOR:
        raise ParameterError(
            f"make up values for {tensor.name}", found=f"it wants {size:.3g} of them", hint="give them with --request"
        )
    return size


def _dims(tensor: Tensor) -> list[int]:
    """Return the dimensions; one of -1 may have any size."""
    return [max(dim, 0) if dim != -1 else 1 for dim in tensor.dims]


def _plain(tensor: Tensor) -> str | bool | int | float:
    if tensor.data_type == "TYPE_STRING":
        return TEXT
    if tensor.data_type == "TYPE_BOOL":
        return False
    return FRACTION if tensor.data_type.startswith(("TYPE_FP", "TYPE_BF")) else NUMBER


def send(
    server: Served, config: ModelConfig, values: Mapping[str, list[Any]], *, generate: bool, timeout_s: float
) -> str:
    """Send one request and return the answer's outputs as text; of a large tensor the first values.

    Args:
        server: A running server.
        config: The model's config.
        values: The request, as `build_request` returns it.
        generate: Over HTTP's generate endpoint, the usual way to a decoupled model; else over a gRPC stream. A
            model that sends several responses to it is asked over the stream too.
        timeout_s: Seconds that the whole answer may take.

    Raises:
        ParameterError: A value is not of its input's type.
        RequestError: The server refused, failed, or did not answer in time.
    """
    try:
        answer = _generate(server, config, values, timeout_s) if generate else None
    except RequestError as error:
        if not SEVERAL.match(error.found):
            raise
        answer = None
    if answer is None:
        answer = _infer(server, config, values, timeout_s)
    return json.dumps(shortened(answer), ensure_ascii=False)


def _generate(server: Served, config: ModelConfig, values: Mapping[str, list[Any]], timeout_s: float) -> dict[str, Any]:
    body = {name: value[0] if len(value) == 1 else value for name, value in values.items()}
    answer = Asker(server.http_url, timeout_s).ask(f"/v2/models/{quote(config.name, safe='')}/generate", body)
    content = answer.read(dict[str, Any])
    if answer.status != OK or "error" in content:  # 200 with an error in it: a late failure
        raise _failed(config, f"HTTP {answer.status}: {str(content.get('error', answer.excerpt))[:EXCERPT]}")
    outputs = {tensor.name for tensor in config.output}
    return {name: value for name, value in content.items() if name in outputs}


def _infer(server: Served, config: ModelConfig, values: Mapping[str, list[Any]], timeout_s: float) -> dict[str, Any]:
    found = dict[str, list[Any]]()
    deadline = time.monotonic() + timeout_s
    inputs = _tensors(config, values)
    try:
        for result in stream_results(server, config.name, inputs, timeout_s):
            for output in result.get_response().outputs:
                found.setdefault(output.name, []).extend(_listed(result.as_numpy(output.name)))
            if time.monotonic() > deadline:
                raise TimeoutError
    except TimeoutError:
        raise _failed(config, f"no response within {timeout_s:g} s") from None
    except InferenceServerException as error:
        raise _failed(config, f"the server says: {str(error.message())[:EXCERPT]}") from error
    return found


def _tensors(config: ModelConfig, values: Mapping[str, list[Any]]) -> list[triton.InferInput]:
    return [
        tensor_of(tensor, values[tensor.name], batched=config.max_batch_size > 0)
        for tensor in config.input
        if tensor.name in values
    ]


def tensor_of(tensor: Tensor, values: list[Any], *, batched: bool) -> triton.InferInput:
    """Return values as a tensor of a request, in the shape of the input if they fill it.

    Raises:
        ParameterError: They are not of its type.
    """
    kind = tensor.data_type.removeprefix("TYPE_").replace("STRING", "BYTES")
    dtype = triton_to_np_dtype(kind)
    try:
        if dtype is None:
            raise TypeError(f"numpy has no type for {kind}")
        array = np.array(values, dtype=dtype).reshape(-1)
        dims = _dims(tensor)
        shape = [*([1] if batched else []), *(dims if math.prod(dims) == array.size else [array.size])]
        made = triton.InferInput(tensor.name, shape, kind)
        made.set_data_from_numpy(array.reshape(shape))
    except (TypeError, ValueError, OverflowError, InferenceServerException) as error:
        raise ParameterError(
            f"send {shortened(values)} as {tensor.name} ({kind})",
            found=str(error)[:EXCERPT],
            hint="give a value of its type: --request",
        ) from error
    return made


def _listed(array: Any) -> list[Any]:
    values = array.reshape(-1).tolist()
    return [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]


def _failed(config: ModelConfig, found: str) -> RequestError:
    return RequestError(f"get an answer from {config.name}", found=found, hint="the server's log says more")
