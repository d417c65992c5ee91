# SPDX-License-Identifier: Apache-2.0
"""The control tensors of sequence batching, as Triton checks them when it reads the config."""

from collections.abc import Iterator
from typing import Any

from tritonclient.grpc import model_config_pb2

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.findings import Finding
from ensemblekit.diagnose.lint.found import found

__all__ = ["check_controls"]

_CONTROL = model_config_pb2.ModelSequenceBatching.Control
_SIGNALS = ("CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_END", "CONTROL_SEQUENCE_READY")
_IDENTITY = "CONTROL_SEQUENCE_CORRID"
_VALUES = ("int32_false_true", "fp32_false_true", "bool_false_true")
_IDENTITY_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")
_EITHER = "'int32_false_true', 'fp32_false_true' or 'bool_false_true'"


def check_controls(model: Model) -> Iterator[Finding]:
    """Yield the first fault of a model's sequence controls, in Triton's words."""
    if not model.config.HasField("sequence_batching"):
        return
    for reason in _reasons(model.config.sequence_batching.control_input, model.config.name):
        yield found("E118", model.folder, ("sequence_batching", "control_input"), reason=reason)
        return


def _reasons(inputs: Any, name: str) -> Iterator[str]:
    names = [entry.name for entry in inputs]
    if "" in names:
        yield f"sequence batching control tensor must have a name for {name}"
    for word in dict.fromkeys(word for word in names if names.count(word) > 1):
        yield f"sequence batching control tensor '{word}' is specified for multiple control kinds for {name}"
    for kind in (*_SIGNALS, _IDENTITY):
        controls = [
            control for entry in inputs for control in entry.control if control.kind == _CONTROL.Kind.Value(kind)
        ]
        if len(controls) > 1:
            yield f"sequence batching specifies multiple {kind} tensors for {name}"
        for control in controls[:1]:
            yield from _identity(control, name) if kind == _IDENTITY else _signal(control, kind, name)


def _signal(control: Any, kind: str, name: str) -> Iterator[str]:
    given = [field for field in _VALUES if len(getattr(control, field))]
    if not given:
        yield f"sequence batching must specify either {_EITHER} for {kind} for {name}"
    elif len(given) > 1:
        listed = _EITHER.replace(" or ", " and ")
        yield f"sequence batching specifies more than one from {listed} for {kind} for {name}"
    elif len(getattr(control, given[0])) != 2:
        yield f"sequence batching control '{given[0]}' must have exactly 2 entries for {kind} for {name}"


def _identity(control: Any, name: str) -> Iterator[str]:
    if any(len(getattr(control, field)) for field in _VALUES):
        yield f"sequence batching must not specify either {_EITHER} for {_IDENTITY} for {name}"
    elif model_config_pb2.DataType.Name(control.data_type) not in _IDENTITY_TYPES:
        types = f"{', '.join(_IDENTITY_TYPES[:-1])} and {_IDENTITY_TYPES[-1]}"
        yield f"unexpected data type for control {_IDENTITY} for {name}. Allowed data types are {types}"
