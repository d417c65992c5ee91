# SPDX-License-Identifier: Apache-2.0
"""What Triton's stub gives a Python model, as far as the backend's unit tests need it."""

import importlib.util
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemblekit.paths import repo_root

BACKEND = repo_root() / "env" / "backends" / "vllm"


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """A model cannot be loaded."""


class TritonError:
    """An error response's text and code."""

    INVALID_ARG, INTERNAL, CANCELLED, UNAVAILABLE = "invalid", "internal", "cancelled", "unavailable"

    def __init__(self, message: str, code: str = "unknown") -> None:
        self.message, self.code = message, code


class Tensor:
    """A named array."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self.values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self.values


class InferenceResponse:
    """Tensors or an error."""

    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors, self.error = {tensor.name(): tensor for tensor in output_tensors or []}, error

    def text(self, name: str) -> str:
        return self.tensors[name].values[0].decode()


class Request:
    """A request with these inputs; text becomes bytes as in Triton."""

    def __init__(self, parameters: str = "", **inputs: Any) -> None:
        self._parameters = parameters
        self._inputs = {name: Tensor(name, _array(value)) for name, value in inputs.items()}

    def inputs(self) -> list[Tensor]:
        return list(self._inputs.values())

    def parameters(self) -> str:
        return self._parameters


class Sender:
    """Remembers what was sent; like Triton's, it must not be asked anything after the last response."""

    def __init__(self) -> None:
        self.sent: list[tuple[InferenceResponse | None, int]] = []
        self.cancelled = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.closed, "a response after the last one"
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        assert not self.closed, "the request is gone: Triton would crash here"
        return self.cancelled

    @property
    def closed(self) -> bool:
        return bool(self.sent) and self.sent[-1][1] == 1


def _array(value: Any) -> np.ndarray:
    if isinstance(value, str):
        return np.array([value.encode()], dtype=np.object_)
    return np.array([value])


def install(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Put a stand-in for `triton_python_backend_utils` in place and the backend's folder on the path."""
    utils = types.ModuleType("triton_python_backend_utils")
    for kind in (TritonModelException, TritonError, Tensor, InferenceResponse):
        setattr(utils, kind.__name__, kind)
    utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
    utils.get_input_tensor_by_name = lambda request, name: request._inputs.get(name)
    utils.Logger = types.SimpleNamespace(log_info=lambda text: None, log_error=lambda text: None)
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    monkeypatch.syspath_prepend(str(BACKEND))
    for name in [name for name in sys.modules if name.startswith("triton_vllm")]:
        monkeypatch.delitem(sys.modules, name)  # each test imports the parts with its own stand-in
    return utils


def load_model(path: Path) -> types.ModuleType:
    """Import a model.py by its path."""
    spec = importlib.util.spec_from_file_location(f"model_{path.parent.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Return once a condition holds, and fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
