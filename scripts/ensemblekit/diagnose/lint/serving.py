# SPDX-License-Identifier: Apache-2.0
"""What loads without a word and breaks later: the T3xx traps that a repository shows by itself."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.ensemble import STEPS, known_steps
from ensemblekit.diagnose.lint.findings import Finding
from ensemblekit.diagnose.lint.load import EXECUTION_ENVIRONMENT, MODEL_DIRECTORY, engine_arguments
from ensemblekit.releases import DocumentedRelease, Release
from ensemblekit.repository.read import read_bytes
from ensemblekit.repository.textproto import Source, model_config_pb2

__all__ = ["check_alone", "check_engines", "check_late", "check_numpy", "numpy_in"]

DEFAULT_SHARE = 0.9  # vLLM's gpu_memory_utilization
METRICS = "REPORT_CUSTOM_METRICS"
TELLS = "return_"  # inputs that ask for more outputs of the answer; who leaves them out wants none
_ON = ("yes", "true")
_KINDS = model_config_pb2.ModelInstanceGroup

_TEMPLATE = re.compile(r"\$\{[^}$]*\}")
_NUMPY = re.compile(r"numpy-(\d[\w.]*)\.dist-info")
_ALMOST_A_VERSION = re.compile(r"0\d+|[vV]\d+|\d+\.\d+")


def check_late(model: Model, models: Mapping[str, Model], *, used: bool) -> Iterator[Finding]:
    """Yield the traps of one ensemble, or of a decoupled model; of one that is `used`, its ensemble's are told."""
    if model.ensemble:
        yield from _check_optional_inputs(model, models)
        yield from _check_batches(model, models)
        yield from _check_single_items(model, models)
    elif used:
        return
    if model.decoupled:
        yield from _decoupled_notes(model, models)


def _check_optional_inputs(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield vLLM's inputs that no step and no client can reach."""
    for index, step, other in known_steps(model, models):
        optional = [entry.name for entry in other.config.input if entry.optional and entry.name not in step.input_map]
        names = [name for name in optional if not name.startswith(TELLS)]
        if names and other.vllm:
            it = "it" if len(names) == 1 else "them"
            detail = f"{other.name} takes {', '.join(names)}, and this step does not give {it}."
            yield model.finding("T301", (*STEPS, index), detail=detail)


def _check_batches(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield a step without batches in an ensemble with them, whose own dims hold no place for the batch."""
    if model.config.max_batch_size <= 0:
        return
    declared = {entry.name: list(entry.dims) for entry in (*model.config.input, *model.config.output)}
    for _, step, other in known_steps(model, models):
        for entry in other.config.input if other.config.max_batch_size <= 0 else ():
            name = step.input_map.get(entry.name, "")
            if name in declared and len(declared[name]) == len(entry.dims):
                detail = f"{model.name} has max_batch_size {model.config.max_batch_size}, {other.name} has 0."
                at = ("max_batch_size",)
                yield model.finding("T305", at, detail=detail, input=entry.name, step=other.name)
                break


def _check_single_items(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield a step with batches in an ensemble without, where a size that varies can only be meant as the batch."""
    if model.config.max_batch_size > 0:
        return
    declared = {entry.name: list(entry.dims) for entry in model.config.input}
    for index, step, other in known_steps(model, models):
        for entry in other.config.input if other.config.max_batch_size > 0 else ():
            given, taken = declared.get(step.input_map.get(entry.name, ""), []), list(entry.dims)
            varies = len(given) == len(taken) and any(a == -1 != b for a, b in zip(given, taken, strict=True))
            if varies or (len(given) == len(taken) + 1 and _feeds_single_items(model, index, models)):
                detail = f"{model.name} takes {given}, {other.name} takes {taken} and a batch before it."
                at = (*STEPS, index, "input_map", ("key", entry.name))
                yield model.finding("T317", at, detail=detail)
                break


def _feeds_single_items(model: Model, index: int, models: Mapping[str, Model]) -> bool:
    """Return whether a step without batches takes what this step, which is given whole batches, writes."""
    steps = model.config.ensemble_scheduling.step
    written = set(steps[index].output_map.values())
    takers = [step for step in steps if written & set(step.input_map.values())]
    return any(step.model_name in models and models[step.model_name].config.max_batch_size <= 0 for step in takers)


def _decoupled_notes(model: Model, models: Mapping[str, Model]) -> Iterator[Finding]:
    sources = list(model.steps)
    streams = [name for name in sources if name in models and models[name].decoupled]
    place = (*STEPS, sources.index(streams[0])) if streams else ("model_transaction_policy",)
    cause = f"{model.name} is decoupled" + (f" because {streams[0]} is." if streams else ".")
    yield model.finding("T302", place, detail=cause)
    if any(entry.name == "stream" for entry in model.config.input):
        yield model.finding("T303", ("input", ("name", "stream")))
    if any(models[name].vllm for name in streams) or model.vllm:
        yield model.finding("T307", place)


def check_alone(model: Model) -> Iterator[Finding]:
    """Yield the traps of one model that need no other to be seen."""
    yield from _check_template(model)
    yield from _check_version_names(model)
    yield from _check_metrics(model)
    yield from _check_paths(model)


def _check_template(model: Model) -> Iterator[Finding]:
    """Yield strings in which a template was not filled in."""
    for entry in model.folder.source.strings():
        if match := _TEMPLATE.search(entry.value):
            line = model.folder.source.line_of(entry.value_span[0])
            yield model.finding("T311", line=line, detail=f"Here stands {match[0]}.")


def _check_version_names(model: Model) -> Iterator[Finding]:
    """Yield folders that were meant as versions and are none."""
    for name in model.folder.subfolders:
        if model.folder.versions and _ALMOST_A_VERSION.fullmatch(name):
            zero = name.startswith("0") and name.isdigit()
            reason = "contains leading zeros in its directory name" if zero else "fails to convert to integral number"
            if not zero and name[0].isdigit():
                continue  # Triton reads the number before the point
            yield model.finding("T312", file=model.folder.path / name, version_folder=name, reason=reason)


def _check_metrics(model: Model) -> Iterator[Finding]:
    """Yield that vLLM's metrics are asked for on one side only."""
    if model.config.backend != "vllm":
        return
    value = model.config.parameters[METRICS].string_value if METRICS in model.config.parameters else None
    for version in model.versions:
        off = (engine_arguments(model, version) or {}).get("disable_log_stats")
        if value is not None and value.lower() not in _ON:
            detail = f'{METRICS} is "{value}"; only "yes" turns them on.'
            yield model.finding("T310", ("parameters", ("key", METRICS)), detail=detail)
        elif off is False if value is None else off:
            file = model.folder.path / str(version) / "model.json"
            lacking = f"disable_log_stats is false, and config.pbtxt has no {METRICS}."
            detail = "disable_log_stats is true." if off else lacking
            yield model.finding("T310", file=file, line=_line_in_json(file, "disable_log_stats"), detail=detail)


def _line_in_json(file: Path, key: str) -> int | None:
    text = read_bytes(file).decode(errors="replace")
    at = text.find(f'"{key}"')
    return Source(text).line_of(at) if at >= 0 else None


def check_engines(models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield vLLM engines that share a GPU and want more than there is, or measure it at the same time."""
    for device, shares in _shares(models).items():
        if sum(share for _, share in shares) <= 1 and len(shares) < 2:
            continue
        model = shares[-1][0]
        version = model.versions[-1]
        file = model.folder.path / str(version) / "model.json"
        listed = " + ".join(f"{share:g} ({model.name})" for model, share in shares)
        line = _line_in_json(file, "gpu_memory_utilization")
        if sum(share for _, share in shares) > 1:
            detail = f"On GPU {device}: {listed}."
            yield model.finding("T308", file=file, line=line, detail=detail)
        else:
            yield model.finding("T309", file=file, detail=f"On GPU {device}: {listed}.")


def _shares(models: Mapping[str, Model]) -> dict[int, list[tuple[Model, float]]]:
    """Return the engines on each GPU with their shares; an engine that names no GPU is on the first."""
    shares: dict[int, list[tuple[Model, float]]] = {}
    for model in models.values():
        versions = model.versions
        groups = model.config.instance_group
        if model.config.backend != "vllm" or not versions or any(g.kind == _KINDS.KIND_CPU for g in groups):
            continue
        arguments = engine_arguments(model, versions[-1])
        if arguments is None:
            continue
        share = arguments.get("gpu_memory_utilization", DEFAULT_SHARE)
        if not isinstance(share, int | float):
            continue  # vLLM itself says what is wrong with it
        for group in groups or [model_config_pb2.ModelInstanceGroup(count=1)]:
            for device in group.gpus or [0]:
                shares.setdefault(device, []).extend([(model, share)] * max(1, group.count))
    return shares


def _check_paths(model: Model) -> Iterator[Finding]:
    """Yield names of files that lead out of the model's folder: the server follows them, lint does not."""
    config = model.config
    names: list[tuple[tuple[str | int, ...], tuple[str, ...]]] = [
        (("default_model_filename",), ("1", config.default_model_filename)),
        *((("cc_model_filenames",), ("1", name)) for name in config.cc_model_filenames.values()),
        *(
            (("output", index, "label_filename"), (output.label_filename,))
            for index, output in enumerate(config.output)
        ),
    ]
    for at, parts in names:
        if model.folder.inside(*parts) is None:
            yield model.finding("T315", at, detail=f"It is {parts[-1]}.")


def _numpy_version(python: Path) -> str | None:
    """Return the numpy of an interpreter, of an environment's folder or of this process; None without one.

    Args:
        python: An interpreter, or a folder made by venv or conda. Nothing is executed: an environment that
            is not to be trusted can be looked at.
    """
    prefix = python if python.is_dir() else python.parent.parent
    folders = [*prefix.glob("lib/python3*/site-packages"), *prefix.glob("lib/python3*/dist-packages")]
    if prefix.resolve() == Path(sys.prefix).resolve():
        folders += [Path(entry) for entry in sys.path if entry.endswith("-packages")]
    folders += [path for base in folders for path in _added(base)]
    return numpy_in(folders)


def _added(folder: Path) -> Iterator[Path]:
    """Yield the folders that .pth files of an environment add."""
    for file in folder.glob("*.pth"):
        for line in _text(file).splitlines():
            if line.startswith("/"):
                yield Path(line)


def _text(file: Path) -> str:
    try:
        return read_bytes(file).decode(errors="replace")
    except OSError:
        return ""


def numpy_in(folders: Iterable[Path]) -> str | None:
    """Return the version of the first numpy that is installed in one of these folders, None without one."""
    found = (
        match for folder in folders for each in sorted(folder.glob("numpy-*")) if (match := _NUMPY.fullmatch(each.name))
    )
    return next((match[1] for match in found), None)


def check_numpy(models: Mapping[str, Model], release: DocumentedRelease, python: Path | None) -> Iterator[Finding]:
    """Yield Python models with string tensors whose environment has a numpy that the release's stub breaks on."""
    if not isinstance(release, Release) or release.numpy_2_safe:  # of one that was not run this is not known
        return
    for model in models.values():
        if model.config.backend not in ("python", "vllm") or not _has_strings(model):
            continue
        own = _own_environment(model)
        where = own or python
        version = _numpy_version(where) if where else None
        if version and int(version.split(".")[0]) >= 2:
            place = ("parameters", ("key", EXECUTION_ENVIRONMENT)) if own else ("backend",)
            detail = f"{where} has numpy {version}, and {release.name} will run {model.name} with it."
            yield model.finding("T304", place, detail=detail)


def _has_strings(model: Model) -> bool:
    tensors = (*model.config.input, *model.config.output)
    return any(tensor.data_type == model_config_pb2.TYPE_STRING for tensor in tensors)


def _own_environment(model: Model) -> Path | None:
    if EXECUTION_ENVIRONMENT not in model.config.parameters:
        return None
    text = model.config.parameters[EXECUTION_ENVIRONMENT].string_value
    path = Path(text.replace(MODEL_DIRECTORY, str(model.folder.path)))
    return path if path.is_dir() else None
