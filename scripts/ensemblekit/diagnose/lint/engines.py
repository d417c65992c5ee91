# SPDX-License-Identifier: Apache-2.0
"""Traps of vLLM engines: memory that several share, metrics switched half on."""

from collections.abc import Iterator, Mapping

from tritonclient.grpc import model_config_pb2

from ensemblekit.diagnose.lint.autocomplete import Model
from ensemblekit.diagnose.lint.findings import Finding
from ensemblekit.diagnose.lint.found import found
from ensemblekit.diagnose.lint.load import engine_arguments, loaded_versions
from ensemblekit.repository.textproto import Source

__all__ = ["check_engines", "check_metrics"]

DEFAULT_SHARE = 0.9  # vLLM's gpu_memory_utilization
METRICS = "REPORT_CUSTOM_METRICS"
_ON = ("yes", "true")
_KINDS = model_config_pb2.ModelInstanceGroup


def check_metrics(model: Model) -> Iterator[Finding]:
    """Yield that vLLM's metrics are asked for on one side only."""
    if model.config.backend != "vllm":
        return
    value = model.config.parameters[METRICS].string_value if METRICS in model.config.parameters else None
    for version in loaded_versions(model):
        arguments = engine_arguments(model, version) or {}
        file = model.folder.path / str(version) / "model.json"
        place = ("parameters", ("key", METRICS))
        if value is not None and value.lower() not in _ON:
            yield found("T310", model.folder, place, detail=f'{METRICS} is "{value}"; only "yes" turns them on.')
        elif value is not None and arguments.get("disable_log_stats"):
            line = _line_in_json(file.read_text(), "disable_log_stats")
            yield found("T310", model.folder, file=file, line=line, detail="disable_log_stats is true.")
        elif value is None and arguments.get("disable_log_stats") is False:
            line = _line_in_json(file.read_text(), "disable_log_stats")
            detail = f"disable_log_stats is false, and config.pbtxt has no {METRICS}."
            yield found("T310", model.folder, file=file, line=line, detail=detail)


def _line_in_json(text: str, key: str) -> int | None:
    at = text.find(f'"{key}"')
    return Source(text).line_of(at) if at >= 0 else None


def check_engines(models: Mapping[str, Model]) -> Iterator[Finding]:
    """Yield vLLM engines that share a GPU and want more than there is, or measure it at the same time."""
    for device, shares in _shares(models).items():
        if sum(share for _, share in shares) <= 1 and len(shares) < 2:
            continue
        model = shares[-1][0]
        version = loaded_versions(model)[-1]
        file = model.folder.path / str(version) / "model.json"
        listed = " + ".join(f"{share:g} ({model.name})" for model, share in shares)
        line = _line_in_json(file.read_text(), "gpu_memory_utilization")
        if sum(share for _, share in shares) > 1:
            detail = f"On GPU {device}: {listed}."
            yield found("T308", model.folder, file=file, line=line, detail=detail)
        else:
            yield found("T309", model.folder, file=file, detail=f"On GPU {device}: {listed}.")


def _shares(models: Mapping[str, Model]) -> dict[int, list[tuple[Model, float]]]:
    """Return the engines on each GPU with their shares; an engine that names no GPU is on the first."""
    shares: dict[int, list[tuple[Model, float]]] = {}
    for model in models.values():
        versions = loaded_versions(model)
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
