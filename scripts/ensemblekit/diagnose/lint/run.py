# SPDX-License-Identifier: Apache-2.0
"""`lint_repository`: the whole of lint as one function."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from ensemblekit.diagnose.lint.autocomplete import Model, complete
from ensemblekit.diagnose.lint.ensemble import STEPS, check_dependencies, check_mapping, check_streams, circle
from ensemblekit.diagnose.lint.findings import Finding, LintReport, make_finding
from ensemblekit.diagnose.lint.load import (
    check_backend,
    check_files,
    check_tensors,
    check_versions,
    unknown_backend,
    unread_code,
)
from ensemblekit.diagnose.lint.poll import check_keys, check_model, check_parsing
from ensemblekit.diagnose.lint.serving import check_alone, check_engines, check_late, check_numpy
from ensemblekit.errors import ParameterError, RepositoryError
from ensemblekit.releases import (
    DocumentedRelease,
    Flavour,
    Release,
    backends_of,
    default_release,
    every_release,
    has_ensembles,
    list_releases,
)
from ensemblekit.repository.read import CONFIG_NAME, ModelFolder, read_config, read_repository

__all__ = ["lint_repository"]


def lint_repository(
    repository: Path,
    *,
    release: str | None = None,
    flavour: Flavour | None = None,
    python: Path | None = None,
    gpus: int | None = None,
    backends: frozenset[str] | None = None,
) -> LintReport:
    """Return what a server of this release and flavour will say to a repository; nothing is started.

    Args:
        repository: The folder that holds one folder per model.
        release: Which Triton; if None, the one that the lessons use.
        flavour: Which build of it; if None, one with ensembles and any backend is assumed.
        python: The interpreter, or the folder of the environment, in which the Python models will run, to look
            for numpy 2 in; if None, this is not looked at.
        gpus: GPUs of the server; if None, as many as the models want.
        backends: All backends of the server; if None, any.

    Raises:
        ParameterError: The release is unknown, or the path is not a model repository that can be read.
    """
    target = _target(release or default_release())
    folders, broken = read_repository(repository)
    run = _Run(target, flavour, python, gpus, backends)
    findings = [
        make_finding("E121", _nobody(repository), file=link, repository=repository, path=link) for link in broken
    ]
    if (repository / CONFIG_NAME).is_file():
        findings.append(_config_in_the_root(repository))
    findings += run.check(folders)
    return LintReport(
        repository=repository,
        release=target.name,
        flavour=flavour,
        assumed=(*([] if release else [f"release {target.name} (--release)"]), *run.assumed()),
        unseen=tuple(run.unseen()),
        models=tuple(folder.name for folder in folders),
        findings=LintReport.in_order(findings),
    )


def _config_in_the_root(repository: Path) -> Finding:
    file = repository / CONFIG_NAME
    try:
        name = read_config(file).name
    except RepositoryError:
        name = ""
    model = name or "its model"
    detail = f"{file} belongs to no model: Triton ignores it" + (f", and there is no {name}." if name else ".")
    fix = f"Move it to {name or 'MODEL'}/{CONFIG_NAME} and make {name or 'MODEL'}/1 beside it, if {model} is wanted."
    return make_finding("T314", _nobody(repository), file=file, detail=detail, fix=fix)


def _target(name: str) -> DocumentedRelease:
    """Return a release that is at least documented; of another one lint says nothing, and names the nearest."""
    known = {release.name: release for release in every_release()}
    if name in known:
        return known[name]
    nearest = next((one for one in reversed(known) if one < name), next(iter(known)))
    raise ParameterError(
        f"lint for Triton release {name!r}",
        found=f"the releases that lint knows are {', '.join(known)}",
        hint=f"use the nearest, `--release {nearest}`; what a server checks changes little between releases",
    )


def _nobody(repository: Path) -> ModelFolder:
    return ModelFolder("", repository, None, None, "", ())


@dataclass
class _Run:
    """The checks of one run, and which models have failed so far; the arguments are those of `lint_repository`."""

    release: DocumentedRelease
    flavour: Flavour | None
    python: Path | None
    gpus: int | None
    backends: frozenset[str] | None
    models: dict[str, Model] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    circular: set[str] = field(default_factory=set)

    def check(self, folders: tuple[ModelFolder, ...]) -> list[Finding]:
        """Return all findings: those of the poll, of the load, and the late traps."""
        findings = [finding for folder in folders for finding in self._poll(folder)]
        self.used.update(*(model.steps for model in self.models.values()))
        for model in self.models.values():
            if not model.ensemble:
                findings += self._settle(model, "load", self._check_alone(model))
        ordered, circular = self._ensembles_in_order()
        self.circular.update(model.name for model in circular)
        for model in (*ordered, *circular):
            model.decoupled = any(self.models[name].decoupled for name in model.steps if name in self.models)
            findings += self._settle(model, "load", self._check_ensemble(model))
        findings += self._late()
        if self.failed and len(self.failed) < len(folders):
            first = next(folder for folder in folders if folder.name == min(self.failed))
            findings.append(replace(make_finding("T306", first), line=None))
        return findings

    def _poll(self, folder: ModelFolder) -> list[Finding]:
        findings = list(check_parsing(folder, self.release))
        if findings or (folder.has_config and folder.config is None):
            self.failed[folder.name] = "poll"
            return findings
        model = complete(folder)
        self.models[folder.name] = model
        ensembles = has_ensembles(self.release, self.flavour or "base-plus-vllm")
        return self._settle(model, "poll", check_model(model, ensembles=ensembles))

    def _settle(self, model: Model, phase: str, findings: Iterator[Finding]) -> list[Finding]:
        """Note whether the model has failed; only its first error is what the server will say."""
        listed = list(findings)
        errors = [finding for finding in listed if finding.severity == "error"]
        before = model.name in self.failed
        if errors and not before:
            self.failed[model.name] = phase
        first = None if before else next(iter(errors), None)
        return [replace(f, first=f is first) if f.severity == "error" else f for f in listed]

    def _check_alone(self, model: Model) -> Iterator[Finding]:
        if self.failed.get(model.name) == "poll":
            return
        yield from check_versions(model)
        if self.backends is not None:
            yield from unknown_backend(model, self.backends)
        yield from check_backend(model, gpus=self.gpus)
        yield from check_tensors(model)
        yield from check_files(model)
        image = backends_of(self.release, self.flavour) if self.flavour and self.backends is None else None
        once = backends_of(list_releases()[0], "base-plus-vllm") or ()  # others were added to the image by somebody
        added = self.flavour != "vllm-image" and model.config.backend not in once
        if image is not None and model.config.backend not in image and not added:
            detail = f"{self.release.name} {self.flavour} has {', '.join(sorted(image))}."
            yield model.finding("T313", ("backend",), backend=model.config.backend, detail=detail)

    def _ensembles_in_order(self) -> tuple[list[Model], list[Model]]:
        """Return the ensembles, inner ones before those that contain them; and those that may be in a circle."""
        inner = {
            name: {step for step in model.steps if step in self.models and self.models[step].ensemble}
            for name, model in self.models.items()
            if model.ensemble
        }
        sorter, ordered = TopologicalSorter[str](), list[str]()
        for name, steps in inner.items():
            sorter.add(name, *steps)
        with suppress(CycleError):
            sorter.prepare()
        while ready := sorter.get_ready():
            ordered += ready
            sorter.done(*ready)
        placed = set(ordered)
        return [self.models[n] for n in ordered], [self.models[n] for n in inner if n not in placed]

    def _check_ensemble(self, model: Model) -> Iterator[Finding]:
        if self.failed.get(model.name) == "poll":
            return
        if model.name in self.circular and (back := circle(model.name, self.models)):
            step = next((name for name in model.steps if name in (back, model.name)), model.steps[0])
            yield model.finding("E210", (*STEPS, ("model_name", step)), step=back)
            return
        findings = list(check_dependencies(model, self.models, self.failed))
        if not any(finding.code == "E201" for finding in findings):
            findings += [*check_mapping(model, self.models), *check_streams(model, self.models)]
        findings += check_versions(model)
        # an ensemble's tensors are looked at last; incomplete ones rarely fit those of a step before
        yield from findings or [*check_tensors(model), *check_files(model)]

    def _late(self) -> Iterator[Finding]:
        for model in self.models.values():
            yield from check_alone(model)
            if model.name not in self.failed:
                yield from check_keys(model)
                yield from check_late(model, self.models, used=model.name in self.used)
        yield from check_engines(self.models)
        yield from check_numpy(self.models, self.release, self.python)

    def unseen(self) -> Iterator[str]:
        """Yield what was not looked at, so that nothing is said of it."""
        for model in self.models.values():
            backend = model.config.backend
            if backend and backend not in ("python", "vllm"):
                yield f"what backend {backend} makes of {model.name}"
            if model.name in self.used and not model.complete:
                yield f"the tensors of {model.name}, which it tells only when it is loaded"
            yield from unread_code(model)

    def assumed(self) -> Iterator[str]:
        """Yield what was taken for granted."""
        if not isinstance(self.release, Release):
            ran = [release.name for release in list_releases()]
            yield f"what {self.release.name} checks is what {ran[-1]} does: it is documented, and was not run here"
        ensembles = (model.config.HasField("ensemble_scheduling") for model in self.models.values())
        if self.flavour is None and any(ensembles):
            shipped = has_ensembles(self.release, "vllm-image")
            text = f"a server of {self.release.name} that was built with ensembles"
            yield text if shipped else f"{text}: NVIDIA's vLLM image of it was not (--flavour vllm-image; E101)"
        if self.python is None and any(m.config.backend == "python" for m in self.models.values()):
            yield "a Python with numpy 1.x for the Python models (--python looks into it)"
