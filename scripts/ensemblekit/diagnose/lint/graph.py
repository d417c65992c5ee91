# SPDX-License-Identifier: Apache-2.0
"""The flow of tensors within one ensemble, as Triton checks it when it reads the config.

Only the first fault is told, as Triton does: one misspelt name leaves a tensor unwritten, another untaken and
an output unproduced, and three findings for it would hide the one place to correct.

Then how many responses flow along it: where a decoupled model begins a stream, and who may join it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.findings import Finding, did_you_mean, make_finding
from ensemblekit.repository.read import ModelFolder
from ensemblekit.repository.textproto import Key

__all__ = ["STEPS", "check_graph", "check_streams", "is_decoupled"]

STEPS = ("ensemble_scheduling", "step")


@dataclass(eq=False)
class _Tensor:
    """A tensor of the ensemble: who writes it and what is made from it."""

    name: str
    writer: tuple[Key, ...] | None = None
    taker: tuple[Key, ...] | None = None
    ready: bool = False
    before: list["_Tensor"] = field(default_factory=list)
    after: list["_Tensor"] = field(default_factory=list)


def check_graph(model: Model) -> Iterator[Finding]:
    """Yield the first fault in an ensemble's flow of tensors, if there is one."""
    yield from list(_faults(model))[:1]


def _faults(model: Model) -> Iterator[Finding]:
    tensors: dict[str, _Tensor] = {}
    yield from _link(model, tensors)
    yield from _flow(model, tensors)
    yield from _check_outputs(model, tensors)
    yield from _check_rest(model, tensors)


def _link(model: Model, tensors: dict[str, _Tensor]) -> Iterator[Finding]:
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        at = (*STEPS, index)
        for name, given in (
            ("model_name", step.model_name),
            ("input_map", step.input_map),
            ("output_map", step.output_map),
        ):
            if not given:
                yield make_finding("E108", model.folder, at, field=name, step=index)
        written = []
        for key, name in sorted(step.output_map.items()):
            tensor = tensors.setdefault(name, _Tensor(name))
            place = (*at, "output_map", ("key", key))
            if tensor.writer:
                yield make_finding("E114", model.folder, place, tensor=name, step=index)
            tensor.writer = place
            written.append(tensor)
        for key, name in sorted(step.input_map.items()):
            source = tensors.setdefault(name, _Tensor(name))
            source.taker = source.taker or (*at, "input_map", ("key", key))
            for tensor in written:
                tensor.before.append(source)
                source.after.append(tensor)


def _flow(model: Model, tensors: dict[str, _Tensor]) -> Iterator[Finding]:
    """Mark what can be computed from the ensemble's inputs."""
    queue = []
    for entry in model.config.input:
        tensor = tensors.get(entry.name)
        if tensor is None:
            taken = [name for name, other in tensors.items() if other.taker and not other.writer]
            detail = did_you_mean(entry.name, taken).strip()
            yield make_finding("E111", model.folder, ("input", ("name", entry.name)), tensor=entry.name, detail=detail)
            continue
        tensor.ready = True
        queue.append(tensor)
    while queue:
        for tensor in queue.pop(0).after:
            if not tensor.ready and all(source.ready for source in tensor.before):
                tensor.ready = True
                queue.append(tensor)


def _check_outputs(model: Model, tensors: dict[str, _Tensor]) -> Iterator[Finding]:
    for entry in model.config.output:
        tensor = tensors.get(entry.name)
        if tensor is None:
            written = [name for name, other in tensors.items() if other.writer]
            detail = did_you_mean(entry.name, written).strip()
            yield make_finding("E110", model.folder, ("output", ("name", entry.name)), tensor=entry.name, detail=detail)
        elif not tensor.ready:
            yield _not_written(model.folder, tensor, tensors)


def _not_written(folder: ModelFolder, output: _Tensor, tensors: dict[str, _Tensor]) -> Finding:
    """Follow what is not ready upstream to its source, as Triton does for its message."""
    last, seen = output, {output.name}
    while source := next((t for t in last.before if not t.ready and t.name not in seen), None):
        seen.add(source.name)
        last = source
    names = [name for name, tensor in tensors.items() if tensor.writer or tensor.ready]
    detail = did_you_mean(last.name, [name for name in names if name != last.name]).strip()
    finding = make_finding("E112", folder, last.taker or (), output=output.name, tensor=last.name, detail=detail)
    if last is not output:
        return finding
    return replace(finding, says=f"output '{output.name}' for ensemble '{folder.name}' is not written")


def _check_rest(model: Model, tensors: dict[str, _Tensor]) -> Iterator[Finding]:
    outputs = {entry.name for entry in model.config.output}
    for name, tensor in tensors.items():
        if name not in outputs and (not tensor.ready or not tensor.after):
            place = tensor.writer or tensor.taker or ()
            taken = [other for other, node in tensors.items() if node.taker and not node.writer and not node.ready]
            wanted = [*taken, *(entry.name for entry in model.config.output)]
            yield make_finding("E113", model.folder, place, tensor=name, detail=did_you_mean(name, wanted).strip())


@dataclass(eq=False)
class _Node:
    """A tensor, and the stream it belongs to: 0 before any decoupled model, then 1, 2 ..."""

    label: int = 0
    seen: bool = False
    step: int = -1
    before: list["_Node"] = field(default_factory=list)
    after: list["_Node"] = field(default_factory=list)


def is_decoupled(model: Model, models: Mapping[str, Model], above: frozenset[str] = frozenset()) -> bool:
    """Return whether a model may answer any number of times: it says so, or one of its steps does."""
    if not model.ensemble or model.name in above:
        return bool(model.config.model_transaction_policy.decoupled)
    steps = (models.get(step.model_name) for step in model.config.ensemble_scheduling.step)
    return any(is_decoupled(step, models, above | {model.name}) for step in steps if step)


def check_streams(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield the step that takes tensors of different streams, such as the prompt and what was generated."""
    nodes = _nodes(model)
    steps = model.config.ensemble_scheduling.step
    labels: dict[int, int] = {}
    last = 0
    queue = []
    for entry in model.config.input:
        if entry.name in nodes:
            nodes[entry.name].seen = True
            queue.append(nodes[entry.name])
    while queue:
        for node in queue.pop(0).after:
            if node.seen or not all(source.seen for source in node.before):
                continue
            label = node.before[0].label
            if any(source.label != label for source in node.before):
                yield _mixed(model, node.step)
                return
            other = models.get(steps[node.step].model_name)
            if node.step not in labels:
                if other and is_decoupled(other, models):
                    last += 1
                    label = last
                labels[node.step] = label
            node.label, node.seen = labels[node.step], True
            queue.append(node)


def _nodes(model: Model) -> dict[str, _Node]:
    nodes: dict[str, _Node] = {}
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        sources = [nodes.setdefault(name, _Node()) for _, name in sorted(step.input_map.items())]
        for _, name in sorted(step.output_map.items()):
            node = nodes.setdefault(name, _Node())
            node.step = index
            for source in sources:
                node.before.append(source)
                source.after.append(node)
    return nodes


def _mixed(model: Model, index: int) -> Finding:
    step = model.config.ensemble_scheduling.step[index]
    taken = ", ".join(sorted(step.input_map.values()))
    detail = f"It is the step of {step.model_name}, which takes {taken}."
    return make_finding("E208", model.folder, (*STEPS, index, "input_map"), detail=detail)
