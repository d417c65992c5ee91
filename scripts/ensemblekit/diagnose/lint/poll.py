# SPDX-License-Identifier: Apache-2.0
"""What Triton checks when it reads one model's config: the E1xx faults, in its own order."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.ensemble import check_graph
from ensemblekit.diagnose.lint.findings import Finding, did_you_mean, make_finding
from ensemblekit.faults import poll as refusals
from ensemblekit.releases import DocumentedRelease
from ensemblekit.repository.read import ModelFolder
from ensemblekit.repository.textproto import Field, model_config_pb2

__all__ = ["check_keys", "check_model", "check_parsing"]

BACKENDS = ("python", "vllm", "onnxruntime", "tensorrt", "tensorrtllm", "tensorflow", "pytorch", "openvino", "dali")
CUSTOM_BACKENDS = ("fil", "identity", "repeat", "square")
_PLATFORMS = {
    "tensorflow": ("tensorflow_savedmodel", "tensorflow_graphdef"),
    "tensorrt": ("tensorrt_plan",),
    "onnxruntime": ("onnxruntime_onnx",),
    "pytorch": ("pytorch_libtorch",),
}
# fields of today's ModelConfig, and the first release that knows each: read out of the libraries up to 24.10, and of
# protobuf/model_config.proto in the branches r24.07 to r26.07 of triton-inference-server/common
_LATER_FIELDS = {"is_non_linear_format_io": "24.08", "model_metrics": "24.11", "max_inflight_requests": "25.11"}
_LIST_FIELDS = (("instance_group", "instance group"), ("optimization", "optimization"), ("model_warmup", ""))
_CONTROL = model_config_pb2.ModelSequenceBatching.Control
_SIGNALS = ("CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_END", "CONTROL_SEQUENCE_READY")
_IDENTITY = "CONTROL_SEQUENCE_CORRID"
_VALUES = ("int32_false_true", "fp32_false_true", "bool_false_true")
_IDENTITY_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")
_EITHER = "'int32_false_true', 'fp32_false_true' or 'bool_false_true'"


def check_parsing(folder: ModelFolder, release: DocumentedRelease) -> Iterator[Finding]:
    """Yield why the config cannot be read as text of Triton's schema, which ends all other checks."""
    path = folder.config_path
    if folder.problem is not None:
        lines = folder.text.split("\n")
        place = (folder.problem.line or 1) - 1  # the parser's place may be behind the last line
        code = "E117" if "${" in "".join(lines[place : place + 1]) else "E116"
        reason = f"{folder.problem.reason.rstrip('.')}."
        yield make_finding(code, folder, line=folder.problem.line, detail=reason, path=path)
        return
    for name, first in _LATER_FIELDS.items():
        found = re.search(rf"^[^#\"\n]*\b{name}\b", folder.text, re.MULTILINE) if release.name < first else None
        if found:
            line = folder.source.line_of(found.end())
            detail = f"Triton {release.name} has no field named {name}; those from {first} on do."
            yield make_finding("E116", folder, line=line, detail=detail, path=path)


def check_model(model: Model, *, ensembles: bool) -> Iterator[Finding]:
    """Yield what Triton, built with ensembles or without them, refuses in one config when it reads it."""
    if not model.guessed:
        yield _no_backend(model)
        return
    yield from _check_platform(model, ensembles)
    yield from _check_values(model)
    for reason in islice(_control_reasons(model.config.sequence_batching.control_input, model.config.name), 1):
        yield model.finding("E118", ("sequence_batching", "control_input"), reason=reason)
    if model.config.HasField("ensemble_scheduling") and (ensembles or not model.ensemble):
        yield from _check_scheduling(model)
    elif model.ensemble and ensembles:
        yield model.finding("E107", ("platform",))
    yield from _check_cache(model)
    if model.config.name != model.name:
        yield model.finding("E115", ("name",), name=model.config.name)


def _no_backend(model: Model) -> Finding:
    folder = model.folder
    if folder.config is not None and folder.config.HasField("ensemble_scheduling"):
        return model.finding("E106", ("ensemble_scheduling",))
    deeper = () if folder.has_config else folder.deeper_configs()
    if deeper:
        place = deeper[0].relative_to(folder.path.parent)
        fix = f"Move {place} to {folder.name}/config.pbtxt"
        if len(deeper[0].relative_to(folder.path).parts) == 2 and not deeper[0].parent.name.isdigit():
            fix = f"If {folder.path} is the repository, give that; else move the file up to {folder.name}/config.pbtxt"
        return model.finding("E119", file=deeper[0], detail=f"It stands in {place}.", fix=f"{fix}.")
    fix = ""
    if folder.name.startswith((".", "__")):
        fix = "Remove this folder from the repository: Triton takes every folder for a model, hidden ones too."
    return model.finding("E120", fix=fix)


def _check_platform(model: Model, ensembles: bool) -> Iterator[Finding]:
    platform, backend, at = model.config.platform, model.config.backend, ("platform",)
    if not backend and platform == "ensemble" and not ensembles:
        yield model.finding("E101", at)
    elif not backend and platform in (*BACKENDS, *CUSTOM_BACKENDS):
        fix = f'Write `backend: "{platform}"` instead.'
        if model.config.HasField("ensemble_scheduling"):
            fix = 'Write `platform: "ensemble"`: this config has steps.'
        yield model.finding("E103", at, fix=fix, platform=platform)
    elif not backend and platform != "ensemble":
        known = ["ensemble", *(name for names in _PLATFORMS.values() for name in names)]
        yield model.finding("E102", at, platform=platform, detail=did_you_mean(platform, known))
    elif backend and platform == "ensemble" and ensembles:
        yield model.finding("E105", ("backend",), platform=platform)
    elif backend in _PLATFORMS and platform not in _PLATFORMS[backend]:
        reason = refusals.PLATFORM_AND_BACKEND.format(platform=platform, backend=backend)
        yield model.finding("E118", at, reason=reason)


def _check_values(model: Model) -> Iterator[Finding]:
    config, name = model.config, model.config.name
    if config.max_batch_size < 0:
        yield model.finding("E118", ("max_batch_size",), reason=refusals.NEGATIVE_BATCH.format(model=name))
    dynamic, oldest = config.dynamic_batching, config.sequence_batching.oldest
    for scheduler, sizes, words in (
        ("dynamic_batching", dynamic.preferred_batch_size, "dynamic batching preferred size"),
        ("sequence_batching", oldest.preferred_batch_size, "sequence batching preferred batch size"),
    ):
        if bad := [size for size in sizes if size <= 0 or size > config.max_batch_size]:
            limit = "positive" if bad[0] <= 0 else "<= max batch size"
            yield model.finding("E118", (scheduler,), reason=f"{words} must be {limit} for {name}")
    if dynamic.priority_levels and not 1 <= dynamic.default_priority_level <= dynamic.priority_levels:
        reason = refusals.PRIORITY.format(levels=dynamic.priority_levels, model=name)
        yield model.finding("E118", ("dynamic_batching", "priority_levels"), reason=reason)


def _check_cache(model: Model) -> Iterator[Finding]:
    causes = {
        "with sequence batching scheduler": model.config.HasField("sequence_batching"),
        "with 'decoupled' transaction policy": model.config.model_transaction_policy.decoupled,
    }
    cause = next((cause for cause, holds in causes.items() if holds), "")
    if cause and model.config.response_cache.enable:
        reason = refusals.CACHE.format(model=model.config.name, cause=cause)
        yield model.finding("E118", ("response_cache",), reason=reason)


def _check_scheduling(model: Model) -> Iterator[Finding]:
    """Yield what is wrong with an ensemble's own config, the models of its steps aside."""
    config = model.config
    if config.backend and not model.ensemble:
        yield model.finding("E104", ("backend",) if model.folder.source.find("backend") else ("ensemble_scheduling",))
    if config.backend or not model.ensemble:
        return  # E105 ends it
    for field, words in _LIST_FIELDS:
        given = getattr(config, field)
        if config.HasField(field) if field == "optimization" else len(given):
            says = "" if words else refusals.WARMUP_OF_ENSEMBLE.format(model=model.name)
            yield model.finding("E109", (field,), field=words, says=says)
    if not config.ensemble_scheduling.step:
        says = refusals.NO_STEP.format(model=config.name)
        yield model.finding("E107", ("ensemble_scheduling",), says=says)
        return
    yield from _with_repeated_keys(model, check_graph(model))


def _with_repeated_keys(model: Model, faults: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the faults of the flow; where a key of a map stands twice, that is the likelier slip than another name."""
    maps = [(one, two) for one, two in model.folder.source.repeated_keys() if two.name in ("input_map", "output_map")]
    for finding in faults:
        if maps:
            first, last = maps[0]
            why = f"{_repeated_key(first, last)} {finding.fault.cause}"
            yield replace(finding, line=last.line, why=why, fix="Give one of the two the key that was meant.")
        else:
            yield finding


def _repeated_key(first: Field, last: Field) -> str:
    key = next(part.value for part in last.fields if part.name == "key")
    return f'In {last.name} the key "{key}" stands twice, in lines {first.line} and {last.line}; only the last counts.'


def check_keys(model: Model) -> Iterator[Finding]:
    """Yield keys that stand twice in one map of a config."""
    for first, last in model.folder.source.repeated_keys():
        yield model.finding("T316", line=last.line, detail=_repeated_key(first, last))


def _control_reasons(inputs: Any, name: str) -> Iterator[str]:
    """Yield the faults of a model's sequence controls in Triton's words, which is only the first of them."""
    names = [entry.name for entry in inputs]
    if "" in names:
        yield f"sequence batching control tensor must have a name for {name}"
    for word in dict.fromkeys(word for word in names if names.count(word) > 1):
        yield f"sequence batching control tensor '{word}' is specified for multiple control kinds for {name}"
    for kind in (*_SIGNALS, _IDENTITY):
        number = _CONTROL.Kind.Value(kind)
        controls = [control for entry in inputs for control in entry.control if control.kind == number]
        if len(controls) > 1:
            yield f"sequence batching specifies multiple {kind} tensors for {name}"
        for control in controls[:1]:
            yield from _identity_reasons(control, name) if kind == _IDENTITY else _signal_reasons(control, kind, name)


def _signal_reasons(control: Any, kind: str, name: str) -> Iterator[str]:
    given = [field for field in _VALUES if len(getattr(control, field))]
    if not given:
        yield f"sequence batching must specify either {_EITHER} for {kind} for {name}"
    elif len(given) > 1:
        listed = _EITHER.replace(" or ", " and ")
        yield f"sequence batching specifies more than one from {listed} for {kind} for {name}"
    elif len(getattr(control, given[0])) != 2:
        yield f"sequence batching control '{given[0]}' must have exactly 2 entries for {kind} for {name}"


def _identity_reasons(control: Any, name: str) -> Iterator[str]:
    if any(len(getattr(control, field)) for field in _VALUES):
        yield f"sequence batching must not specify either {_EITHER} for {_IDENTITY} for {name}"
    elif model_config_pb2.DataType.Name(control.data_type) not in _IDENTITY_TYPES:
        types = f"{', '.join(_IDENTITY_TYPES[:-1])} and {_IDENTITY_TYPES[-1]}"
        yield refusals.CORRELATION_TYPE.format(kind=_IDENTITY, model=name, types=types)
