# SPDX-License-Identifier: Apache-2.0
"""One ensemble: the flow of tensors in it, and its steps against their models.

Of the flow, which Triton checks when it reads the config, only the first fault is told, as Triton does: one misspelt
name leaves a tensor unwritten, another untaken and an output unproduced, and three findings for it would hide the one
place to correct. The models of the steps are compared once they are loaded. So is how many responses flow: where a
decoupled model begins a stream, and who may join it.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.findings import Finding, did_you_mean
from ensemblekit.faults import poll as refusals
from ensemblekit.repository.textproto import Key, model_config_pb2

__all__ = ["STEPS", "check_dependencies", "check_graph", "check_mapping", "check_streams", "circle", "known_steps"]

STEPS = ("ensemble_scheduling", "step")
SEPARATOR = ", "


@dataclass(eq=False)
class _Tensor:
    """A tensor of the ensemble."""

    name: str
    writer: tuple[Key, ...] | None = None  # the place in the config where it is written
    taker: tuple[Key, ...] | None = None  # the first place where it is taken
    step: int = -1  # the step that writes it, -1 for none
    takers: list[int] = field(default_factory=list)  # the steps that take it
    ready: bool = False  # whether it can be computed from the ensemble's inputs
    stream: int = 0  # the stream it belongs to: 0 before any decoupled model, then 1, 2


Tensors = dict[str, _Tensor]


def check_graph(model: Model) -> Iterator[Finding]:
    """Yield the first fault in an ensemble's flow of tensors, if there is one."""
    if first := next(_faults(model), None):
        yield first


def _faults(model: Model) -> Iterator[Finding]:
    tensors: Tensors = {}
    yield from _link(model, tensors)
    for entry in model.config.input:
        if entry.name not in tensors:
            taken = [name for name, other in tensors.items() if other.taker and not other.writer]
            detail = did_you_mean(entry.name, taken)
            yield model.finding("E111", ("input", ("name", entry.name)), tensor=entry.name, detail=detail)
    for _ in _steps_in_order(model, tensors):
        pass
    for entry in model.config.output:
        tensor = tensors.get(entry.name)
        if tensor is None:
            written = [name for name, other in tensors.items() if other.writer]
            detail = did_you_mean(entry.name, written)
            yield model.finding("E110", ("output", ("name", entry.name)), tensor=entry.name, detail=detail)
        elif not tensor.ready:
            yield _not_written(model, tensor, tensors)
    outputs = {entry.name for entry in model.config.output}
    for name, tensor in tensors.items():
        if name not in outputs and (not tensor.ready or not tensor.takers):
            place = tensor.writer or tensor.taker or ()
            wanted = [other for other, node in tensors.items() if node.taker and not node.writer and not node.ready]
            detail = did_you_mean(name, [*wanted, *outputs])
            yield model.finding("E113", place, tensor=name, detail=detail)


def _link(model: Model, tensors: Tensors) -> Iterator[Finding]:
    """Fill in who writes and who takes each tensor; yield what the steps lack, and what is written twice."""
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        at = (*STEPS, index)
        for name in ("model_name", "input_map", "output_map"):
            if not getattr(step, name):
                yield model.finding("E108", at, field=name, step=index)
        for key, name in sorted(step.output_map.items()):
            tensor = tensors.setdefault(name, _Tensor(name))
            place = (*at, "output_map", ("key", key))
            if tensor.writer:
                yield model.finding("E114", place, tensor=name, step=index)
            tensor.writer, tensor.step = place, index
        for key, name in sorted(step.input_map.items()):
            source = tensors.setdefault(name, _Tensor(name))
            source.taker = source.taker or (*at, "input_map", ("key", key))
            if index not in source.takers[-1:]:
                source.takers.append(index)


def _steps_in_order(model: Model, tensors: Tensors) -> Iterator[int]:
    """Yield each step once all it takes can be had from the ensemble's inputs, and mark what it writes."""
    steps = model.config.ensemble_scheduling.step
    missing = [len(set(step.input_map.values())) for step in steps]
    given = dict.fromkeys(entry.name for entry in model.config.input)
    queue = deque(tensors[name] for name in given if name in tensors)
    for tensor in queue:
        tensor.ready = True
    while queue:
        for index in queue.popleft().takers:
            missing[index] -= 1
            if missing[index]:
                continue
            yield index
            written = [tensors[name] for _, name in sorted(steps[index].output_map.items())]
            queue.extend(tensor for tensor in written if not tensor.ready)
            for tensor in written:
                tensor.ready = True


def _not_written(model: Model, output: _Tensor, tensors: Tensors) -> Finding:
    """Follow what is not ready upstream to its source, as Triton does for its message."""
    last, seen = output, {output.name}
    while source := next((t for t in _sources(model, last.step, tensors) if not t.ready and t.name not in seen), None):
        seen.add(source.name)
        last = source
    names = [name for name, tensor in tensors.items() if tensor.writer or tensor.ready]
    detail = did_you_mean(last.name, [name for name in names if name != last.name])
    finding = model.finding("E112", last.taker or (), output=output.name, tensor=last.name, detail=detail)
    if last is not output:
        return finding
    return replace(finding, says=f"output '{output.name}' for ensemble '{model.name}' is not written")


def _sources(model: Model, index: int, tensors: Tensors) -> Iterator[_Tensor]:
    """Yield what a step takes, by the keys of its map; nothing for the step -1."""
    if index >= 0:
        for _, name in sorted(model.config.ensemble_scheduling.step[index].input_map.items()):
            yield tensors[name]


def check_streams(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield the step, or the outputs, of different streams, and a cache, which cannot hold streams."""
    tensors: Tensors = {}
    list(_link(model, tensors))
    steps = model.config.ensemble_scheduling.step
    last = 0
    for index in _steps_in_order(model, tensors):
        streams = [tensor.stream for tensor in _sources(model, index, tensors)]
        if len(set(streams)) > 1:
            taken = ", ".join(sorted(steps[index].input_map.values()))
            detail = f"It is the step of {steps[index].model_name}, which takes {taken}."
            yield model.finding("E208", (*STEPS, index, "input_map"), detail=detail)
            return
        other = models.get(steps[index].model_name)
        if other and other.decoupled:
            last += 1
        for name in steps[index].output_map.values():
            tensors[name].stream = last if other and other.decoupled else streams[0]
    outputs = sorted({entry.name for entry in model.config.output} & set(tensors))
    if len({tensors[name].stream for name in outputs}) > 1:
        detail = f"It is no step but the ensemble's own outputs: {', '.join(outputs)}."
        yield model.finding("E208", ("output",), detail=detail)
    if last and model.config.response_cache.enable:  # an ensemble is as decoupled as its steps
        reason = refusals.CACHE.format(model=model.config.name, cause="with 'decoupled' transaction policy")
        yield model.finding("E118", ("response_cache",), reason=reason)


def known_steps(model: Model, models: Mapping[str, Model]) -> Iterator[tuple[int, Any, Model]]:
    """Yield the number of each step of an ensemble, the step and its model, of those that are there."""
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        if step.model_name in models:
            yield index, step, models[step.model_name]


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
        yield model.finding(
            "E201",
            (*STEPS, index, "model_name"),
            missing=SEPARATOR.join(absent),
            detail="The config of the step's model is refused." if refused else did_you_mean(absent[0], others),
            consequence=refused,
        )
        return
    for index, step in enumerate(steps):
        at, name, version = (*STEPS, index), step.model_name, step.model_version
        if failed.get(name) == "load":
            yield model.finding("E209", (*at, "model_name"), step=name)
        elif version != -1 and version not in models[name].versions:
            have = ", ".join(str(number) for number in models[name].versions)
            detail = f"Of {name} the version {have} would be loaded." if have else ""
            if version == 0:
                detail += " Without `model_version`, Triton takes it for version 0."
            place = (*at, "model_version")
            yield model.finding("E212", place, step=name, version=version, detail=detail.strip())


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
class _Known:
    """What is known of an ensemble's tensor, and of whom it was learnt."""

    origin: str
    kind: int
    dims: Sequence[int]
    whole: Sequence[int]  # with the batch dimension


def check_mapping(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield where an ensemble's maps and tensors do not fit the models of its steps."""
    config = model.config
    tensors: dict[str, _Known] = {}
    for entry in (*config.input, *config.output):
        dims = entry.reshape.shape if entry.HasField("reshape") else entry.dims
        tensors.setdefault(entry.name, _tensor(model, entry.data_type, dims))
    for index, step, other in known_steps(model, models):
        size, limit = config.max_batch_size, other.config.max_batch_size
        if 0 < limit < size:
            yield model.finding("E211", ("max_batch_size",), size=size, step=other.name, step_size=limit)
        yield from _check_step(model, step, (*STEPS, index), other, tensors)


def _tensor(model: Model, kind: int, dims: Sequence[int]) -> _Known:
    batch = [-1] if model.config.max_batch_size > 0 else []
    return _Known(model.name, kind, list(dims), [*batch, *dims])


def _check_step(
    model: Model, step: Any, at: tuple[Key, ...], other: Model, tensors: dict[str, _Known]
) -> Iterator[Finding]:
    for side, mapped, declared in (
        ("input", step.input_map, other.config.input),
        ("output", step.output_map, other.config.output),
    ):
        names = [entry.name for entry in declared]
        bad = [key for key in sorted(mapped) if key not in names and other.complete]
        for key in bad:
            yield _bad_key(
                model, side, (*at, f"{side}_map", ("key", key)), key, mapped[key], other, [*dict.fromkeys(names)]
            )
        for name, entry in {entry.name: entry for entry in declared}.items():
            place = (*at, f"{side}_map", ("key", name))
            if name in mapped:
                if side == "output" and names.count(name) > 1:
                    yield model.finding("E221", place, step=other.name, tensor=mapped[name])
                given = _tensor(other, entry.data_type, entry.dims)
                yield from _compare(model, (*place, "value"), mapped[name], given, tensors)
            elif side == "input" and not entry.optional and not bad:  # a misspelt key is the cause of the unmapped one
                yield model.finding("E204", at, input=name, step=other.name)


def _bad_key(
    model: Model, side: str, at: tuple[Key, ...], key: str, value: str, other: Model, known: list[str]
) -> Finding:
    code = "E202" if side == "input" else "E203"
    detail = did_you_mean(key, known)
    if value in known:
        detail = f'"{value}" is the {side} of {other.name}: key and value are swapped.'
    fix = f"{other.name} has the {side}s {', '.join(known)}; use one of them as key." if known else ""
    return model.finding(code, at, detail=detail, fix=fix, input=key, output=key, tensor=value, step=other.name)


def _compare(
    model: Model, at: tuple[Any, ...], name: str, new: _Known, tensors: dict[str, _Known]
) -> Iterator[Finding]:
    old = tensors.setdefault(name, new)
    if old.kind != new.kind:
        code, here, there = "E205", *map(model_config_pb2.DataType.Name, (old.kind, new.kind))
    elif not _fit(old.dims, new.dims) and not _fit(old.whole, new.whole):
        code, here, there = "E206", _shape(old.whole), _shape(new.whole)
    else:
        return
    yield model.finding(code, at, here=here, there=there, tensor=name, origin=old.origin, step=new.origin)


def _fit(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _shape(dims: Sequence[int]) -> str:
    return f"[{','.join(str(size) for size in dims)}]"
