# SPDX-License-Identifier: Apache-2.0
"""The flow of tensors within one ensemble, as Triton checks it when it reads the config.

Only the first fault is told, as Triton does: one misspelt name leaves a tensor unwritten, another untaken and
an output unproduced, and three findings for it would hide the one place to correct.

Then how many responses flow along it: where a decoupled model begins a stream, and who may join it.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.findings import Finding, did_you_mean, make_finding
from ensemblekit.faults import poll as refusals
from ensemblekit.repository.textproto import Key

__all__ = ["STEPS", "check_graph", "check_streams"]

STEPS = ("ensemble_scheduling", "step")


@dataclass(eq=False)
class _Tensor:
    """A tensor of the ensemble.

    Attributes:
        name: Its name.
        writer: The place in the config where it is written.
        taker: The first place where it is taken.
        step: The step that writes it, -1 for none.
        takers: The steps that take it.
        ready: Whether it can be computed from the ensemble's inputs.
        stream: The stream it belongs to: 0 before any decoupled model, then 1, 2 ...
    """

    name: str
    writer: tuple[Key, ...] | None = None
    taker: tuple[Key, ...] | None = None
    step: int = -1
    takers: list[int] = field(default_factory=list)
    ready: bool = False
    stream: int = 0


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
            detail = did_you_mean(entry.name, taken).strip()
            yield make_finding("E111", model.folder, ("input", ("name", entry.name)), tensor=entry.name, detail=detail)
    for _ in _steps_in_order(model, tensors):
        pass
    for entry in model.config.output:
        tensor = tensors.get(entry.name)
        if tensor is None:
            written = [name for name, other in tensors.items() if other.writer]
            detail = did_you_mean(entry.name, written).strip()
            yield make_finding("E110", model.folder, ("output", ("name", entry.name)), tensor=entry.name, detail=detail)
        elif not tensor.ready:
            yield _not_written(model, tensor, tensors)
    outputs = {entry.name for entry in model.config.output}
    for name, tensor in tensors.items():
        if name not in outputs and (not tensor.ready or not tensor.takers):
            place = tensor.writer or tensor.taker or ()
            wanted = [other for other, node in tensors.items() if node.taker and not node.writer and not node.ready]
            detail = did_you_mean(name, [*wanted, *outputs]).strip()
            yield make_finding("E113", model.folder, place, tensor=name, detail=detail)


def _link(model: Model, tensors: Tensors) -> Iterator[Finding]:
    """Fill in who writes and who takes each tensor; yield what the steps lack, and what is written twice."""
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        at = (*STEPS, index)
        for name in ("model_name", "input_map", "output_map"):
            if not getattr(step, name):
                yield make_finding("E108", model.folder, at, field=name, step=index)
        for key, name in sorted(step.output_map.items()):
            tensor = tensors.setdefault(name, _Tensor(name))
            place = (*at, "output_map", ("key", key))
            if tensor.writer:
                yield make_finding("E114", model.folder, place, tensor=name, step=index)
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
    detail = did_you_mean(last.name, [name for name in names if name != last.name]).strip()
    finding = make_finding("E112", model.folder, last.taker or (), output=output.name, tensor=last.name, detail=detail)
    if last is not output:
        return finding
    return replace(finding, says=f"output '{output.name}' for ensemble '{model.name}' is not written")


def _sources(model: Model, index: int, tensors: Tensors) -> Iterator[_Tensor]:
    """Yield what a step takes, by the keys of its map; nothing for the step -1."""
    if index >= 0:
        for _, name in sorted(model.config.ensemble_scheduling.step[index].input_map.items()):
            yield tensors[name]


def check_streams(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield the step that takes tensors of different streams, and a cache, which cannot hold streams."""
    tensors: Tensors = {}
    list(_link(model, tensors))
    steps = model.config.ensemble_scheduling.step
    last = 0
    for index in _steps_in_order(model, tensors):
        streams = [tensor.stream for tensor in _sources(model, index, tensors)]
        if len(set(streams)) > 1:
            taken = ", ".join(sorted(steps[index].input_map.values()))
            detail = f"It is the step of {steps[index].model_name}, which takes {taken}."
            yield make_finding("E208", model.folder, (*STEPS, index, "input_map"), detail=detail)
            return
        other = models.get(steps[index].model_name)
        if other and other.decoupled:
            last += 1
        for name in steps[index].output_map.values():
            tensors[name].stream = last if other and other.decoupled else streams[0]
    if last and model.config.response_cache.enable:  # an ensemble is as decoupled as its steps
        reason = refusals.CACHE.format(model=model.config.name, cause="with 'decoupled' transaction policy")
        yield make_finding("E118", model.folder, ("response_cache",), reason=reason)
