# SPDX-License-Identifier: Apache-2.0
"""How many responses flow along an ensemble: where a decoupled model begins a stream, and who may join it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.findings import Finding, make_finding
from ensemblekit.diagnose.lint.graph import STEPS

__all__ = ["check_streams", "is_decoupled"]


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
