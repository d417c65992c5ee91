# SPDX-License-Identifier: Apache-2.0
"""What loads without a word and breaks later: the T3xx traps that a repository shows by itself."""

import re
from collections.abc import Iterator, Mapping

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.decoupled import is_decoupled
from ensemblekit.diagnose.lint.findings import Finding
from ensemblekit.diagnose.lint.found import found
from ensemblekit.diagnose.lint.graph import STEPS

__all__ = ["check_late", "check_template", "check_version_names"]

_TEMPLATE = re.compile(r"\$\{[^}]*\}")
_ALMOST_A_VERSION = re.compile(r"0\d+|[vV]\d+|\d+\.\d+")


def check_late(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield the traps of one ensemble, or of a decoupled model that no ensemble uses."""
    used = {step.model_name for other in models.values() for step in other.config.ensemble_scheduling.step}
    if model.ensemble:
        yield from _check_optional_inputs(model, models)
        yield from _check_batches(model, models)
    elif model.name in used:
        return
    if is_decoupled(model, models):
        yield from _decoupled_notes(model, models)


def _check_optional_inputs(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield vLLM's inputs that no step and no client can reach."""
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        other = models.get(step.model_name)
        if not (other and other.vllm):
            continue
        names = [entry.name for entry in other.config.input if entry.optional and entry.name not in step.input_map]
        if names:
            detail = f"{other.name} takes {', '.join(names)}, and this step does not give {_it(names)}."
            yield found("T301", model.folder, (*STEPS, index), detail=detail)


def _it(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _check_batches(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield a step without batches in an ensemble with them, whose own dims hold no place for the batch."""
    if model.config.max_batch_size <= 0:
        return
    declared = {entry.name: list(entry.dims) for entry in (*model.config.input, *model.config.output)}
    for step in model.config.ensemble_scheduling.step:
        other = models.get(step.model_name)
        if not other or other.config.max_batch_size > 0:
            continue
        for entry in other.config.input:
            name = step.input_map.get(entry.name, "")
            if name in declared and len(declared[name]) == len(entry.dims):
                size = model.config.max_batch_size
                detail = f"{model.name} has max_batch_size {size}, {other.name} has 0."
                at = ("max_batch_size",)
                yield found("T305", model.folder, at, detail=detail, input=entry.name, step=other.name)
                break


def _decoupled_notes(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    sources = [step.model_name for step in model.config.ensemble_scheduling.step]
    streams = [name for name in sources if name in models and is_decoupled(models[name], models)]
    place = (*STEPS, sources.index(streams[0])) if streams else ("model_transaction_policy",)
    cause = f"{model.name} is decoupled" + (f" because {streams[0]} is." if streams else ".")
    yield found("T302", model.folder, place, detail=cause)
    if any(entry.name == "stream" for entry in model.config.input):
        yield found("T303", model.folder, ("input", ("name", "stream")))
    if any(models[name].vllm for name in streams) or model.vllm:
        yield found("T307", model.folder, place)


def check_template(model: Model) -> Iterator[Finding]:
    """Yield strings in which a template was not filled in."""
    for entry in model.folder.source.strings():
        if match := _TEMPLATE.search(entry.value):
            line = model.folder.source.line_of(entry.value_span[0])
            yield found("T311", model.folder, line=line, detail=f"Here stands {match[0]}.")


def check_version_names(model: Model) -> Iterator[Finding]:
    """Yield folders that were meant as versions and are none."""
    for name in model.folder.subfolders:
        if model.folder.versions and _ALMOST_A_VERSION.fullmatch(name):
            zero = name.startswith("0") and name.isdigit()
            reason = "contains leading zeros in its directory name" if zero else "fails to convert to integral number"
            if not zero and name[0].isdigit():
                continue  # Triton reads the number before the point
            yield found("T312", model.folder, file=model.folder.path / name, version_folder=name, reason=reason)
