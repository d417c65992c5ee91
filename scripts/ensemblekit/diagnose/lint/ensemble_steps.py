# SPDX-License-Identifier: Apache-2.0
"""An ensemble against the models of its steps, as Triton compares them once those are loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.findings import Finding, did_you_mean, make_finding
from ensemblekit.diagnose.lint.graph import STEPS
from ensemblekit.repository.textproto import model_config_pb2

__all__ = ["check_dependencies", "check_mapping", "circle"]

SEPARATOR = ", "


def check_dependencies(model: Model, models: Mapping[str, Model], failed: Mapping[str, str]) -> Iterator[Finding]:
    """Yield why an ensemble cannot have its steps' models.

    Args:
        model: The ensemble.
        models: Every model whose config could be read.
        failed: Models that will not load, by name; the value is `poll` or `load`.
    """
    steps = model.config.ensemble_scheduling.step
    names = dict.fromkeys(step.model_name for step in steps)
    absent = sorted(name for name in names if name not in models or failed.get(name) == "poll")
    if absent:
        index = next(i for i, step in enumerate(steps) if step.model_name in absent)
        others = [name for name in models if name != model.name]
        refused = all(name in failed for name in absent)
        yield make_finding(
            "E201",
            model.folder,
            (*STEPS, index, "model_name"),
            missing=SEPARATOR.join(absent),
            detail="The config of the step's model is refused." if refused else did_you_mean(absent[0], others).strip(),
            consequence=refused,
        )
        return
    for index, step in enumerate(steps):
        at, name, version = (*STEPS, index), step.model_name, step.model_version
        if failed.get(name) == "load":
            yield make_finding("E209", model.folder, (*at, "model_name"), step=name)
        elif version != -1 and version not in models[name].versions:
            have = ", ".join(str(number) for number in models[name].versions)
            detail = f"Of {name} the version {have} would be loaded." if have else ""
            if version == 0:
                detail += " Without `model_version`, Triton takes it for version 0."
            place = (*at, "model_version")
            yield make_finding("E212", model.folder, place, step=name, version=version, detail=detail.strip())


def circle(name: str, models: Mapping[str, Model]) -> str | None:
    """Return the model from which the steps of an ensemble lead back to it, None if they do not."""
    queue, seen = [name], set[str]()
    while queue:
        current = queue.pop()
        for step in dict.fromkeys(models[current].steps if current in models else ()):
            if step == name:
                return current
            if step not in seen:
                seen.add(step)
                queue.append(step)
    return None


@dataclass
class _Tensor:
    """What is known of an ensemble's tensor, and of whom it was learnt."""

    origin: str
    kind: int
    dims: Sequence[int]
    whole: Sequence[int]  # with the batch dimension


def check_mapping(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield where an ensemble's maps and tensors do not fit the models of its steps."""
    config = model.config
    tensors: dict[str, _Tensor] = {}
    for entry in (*config.input, *config.output):
        dims = entry.reshape.shape if entry.HasField("reshape") else entry.dims
        tensors.setdefault(entry.name, _tensor(model, entry.data_type, dims))
    for index, step in enumerate(config.ensemble_scheduling.step):
        other = models.get(step.model_name)
        if other is None:
            continue
        size, limit = config.max_batch_size, other.config.max_batch_size
        if 0 < limit < size:
            place = ("max_batch_size",)
            yield make_finding("E211", model.folder, place, size=size, step=step.model_name, step_size=limit)
        yield from _check_step(model, index, other, tensors)


def _tensor(model: Model, kind: int, dims: Sequence[int]) -> _Tensor:
    batch = [-1] if model.config.max_batch_size > 0 else []
    return _Tensor(model.name, kind, list(dims), [*batch, *dims])


def _check_step(model: Model, index: int, other: Model, tensors: dict[str, _Tensor]) -> Iterator[Finding]:
    step, at = model.config.ensemble_scheduling.step[index], (*STEPS, index)
    inputs = {entry.name: entry for entry in other.config.input}
    outputs = {entry.name: entry for entry in other.config.output}
    bad = [key for key in sorted(step.input_map) if key not in inputs and other.complete]
    for key in bad:
        yield _bad_key("E202", model, (*at, "input_map", ("key", key)), key, step.input_map[key], other, inputs)
    for name, entry in inputs.items():
        if name in step.input_map:
            place = (*at, "input_map", ("key", name), "value")
            yield from _compare(model, place, step.input_map[name], _tensor_of(other, entry), tensors)
        elif not entry.optional and not bad:  # a misspelt key is the cause of the unmapped input
            yield make_finding("E204", model.folder, at, input=name, step=other.name)
    for key in [key for key in sorted(step.output_map) if key not in outputs and other.complete]:
        yield _bad_key("E203", model, (*at, "output_map", ("key", key)), key, step.output_map[key], other, outputs)
    for name, entry in outputs.items():
        if name in step.output_map:
            if [output.name for output in other.config.output].count(name) > 1:
                tensor = step.output_map[name]
                yield make_finding(
                    "E221", model.folder, (*at, "output_map", ("key", name)), step=other.name, tensor=tensor
                )
            place = (*at, "output_map", ("key", name), "value")
            yield from _compare(model, place, step.output_map[name], _tensor_of(other, entry), tensors)


def _tensor_of(model: Model, entry: Any) -> _Tensor:
    return _tensor(model, entry.data_type, entry.dims)


def _bad_key(
    code: str, model: Model, at: tuple[Any, ...], key: str, value: str, other: Model, known: Mapping[str, Any]
) -> Finding:
    side = "input" if code == "E202" else "output"
    detail = did_you_mean(key, known).strip()
    if value in known:
        detail = f'"{value}" is the {side} of {other.name}: key and value are swapped.'
    fix = f"{other.name} has the {side}s {', '.join(known)}; use one of them as key." if known else ""
    return make_finding(
        code, model.folder, at, detail=detail, fix=fix, input=key, output=key, tensor=value, step=other.name
    )


def _compare(
    model: Model, at: tuple[Any, ...], name: str, new: _Tensor, tensors: dict[str, _Tensor]
) -> Iterator[Finding]:
    old = tensors.setdefault(name, new)
    if old.kind != new.kind:
        kinds = model_config_pb2.DataType.Name
        here, there = kinds(old.kind), kinds(new.kind)
        yield make_finding(
            "E205", model.folder, at, here=here, there=there, tensor=name, origin=old.origin, step=new.origin
        )
    elif not _fit(old.dims, new.dims) and not _fit(old.whole, new.whole):
        here, there = _shape(old.whole), _shape(new.whole)
        yield make_finding(
            "E206", model.folder, at, here=here, there=there, tensor=name, origin=old.origin, step=new.origin
        )


def _fit(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _shape(dims: Sequence[int]) -> str:
    return f"[{','.join(str(size) for size in dims)}]"
