# SPDX-License-Identifier: Apache-2.0
"""Exercise 6: two refusals in the same words, one the server's fault and one the repository's."""

from collections.abc import Iterator
from typing import Any

from ensemblekit.checks.task import UNTOUCHED, Mistake, excerpt, lint_mistakes, start, task
from ensemblekit.errors import KitError
from ensemblekit.releases import FLAVOURS, get_release, has_ensembles, list_releases
from ensemblekit.repository.read import read_config
from ensemblekit.repository.stage import StagedRepository
from ensemblekit.servers.outcome import StartOutcome

__all__ = ["blamed", "cured", "repaired", "start"]

BY_SERVER, BY_REPOSITORY = "ensemble", "postprocess"


@task("each refusal is blamed on what causes it")
def blamed(outcome: StartOutcome, by_server: Any, by_repository: Any) -> Iterator[Mistake]:
    """Check which refused model is whose fault."""
    refused = [message.split("'")[1] for message in outcome.poll_errors]
    for found in (by_server, by_repository):
        if not isinstance(found, str):
            yield Mistake(excerpt(found), "give the model's name as a text in quotes")
        if found not in refused and any(name in found for name in refused):
            yield Mistake(excerpt(found), "the bare name of the model: small letters, no blanks, no other words")
        if found in outcome.loaded:
            yield Mistake(
                f"{found!r}, which was loaded", "the server refuses two models: outcome.poll_errors names them"
            )
        if found not in refused:
            yield Mistake(f"{found!r}", "no refusal names that model: outcome.poll_errors shows both")
    if by_server == by_repository:
        about = f"{by_server!r} twice"
        yield Mistake(about, "two models are refused, in the same words and for different reasons")
    if (by_server, by_repository) == (BY_REPOSITORY, BY_SERVER):
        about = "the two are exchanged"
        yield Mistake(about, "which word in quotes is a platform of Triton's, and which one names a backend?")


@task("the release and the flavour give a server with ensembles")
def cured(found: Any) -> Iterator[Mistake]:
    """Check a choice of release and flavour."""
    if not isinstance(found, dict) or found.keys() != {"release", "flavour"}:
        yield Mistake(excerpt(found), "keep the dictionary with the two keys release and flavour")
    release, flavour = found["release"], found["flavour"]
    if release is ... or flavour is ...:
        yield UNTOUCHED
    if not isinstance(release, str):
        yield Mistake(f"release {release!r}", "a release is a text in quotes: as a number, 24.10 is 24.1")
    try:
        row = get_release(release)
    except KitError:
        names = ", ".join(one.name for one in list_releases())
        yield Mistake(f"release {release!r}", f"the kit knows the releases {names}")
        return
    if flavour not in FLAVOURS:
        yield Mistake(f"flavour {flavour!r}", f"the flavours are {', '.join(FLAVOURS)}")
    if not has_ensembles(row, flavour):
        about = f"{release} ({flavour}) has no ensembles either"
        yield Mistake(about, "lesson 07 shows which have: a later vllm-image, or another flavour of the same release")


@task("the repository's own fault is repaired")
def repaired(repository: StagedRepository) -> Iterator[Mistake]:
    """Check the staged configurations of the two refused models."""
    ensemble = read_config(repository.path / BY_SERVER)
    if (ensemble.platform, ensemble.backend) != ("ensemble", ""):
        about = f"the ensemble has platform {ensemble.platform!r} and backend {ensemble.backend!r}"
        yield Mistake(about, "its configuration was right: only the server did not understand it")
    if [step.model_name for step in ensemble.ensemble_scheduling.step] != ["preprocess", "llm", "postprocess"]:
        yield Mistake(
            "the ensemble has lost a step", "the pipeline needs all three: repair the model, do not go round it"
        )
    if not (repository.path / BY_REPOSITORY / "config.pbtxt").is_file():
        yield Mistake("the model's config.pbtxt is gone", "write the repaired configuration back with write_config")
    config = read_config(repository.path / BY_REPOSITORY)
    platform, backend = config.platform, config.backend
    if (platform, backend) == ("python", ""):
        yield UNTOUCHED
    if platform and (platform, backend) != ("python", "python"):  # Triton takes the older word beside the newer one
        yield Mistake(f"platform {platform!r}", "a Python model has a backend, as preprocess has; clear the platform")
    if backend != "python" and backend.strip().lower() == "python":
        yield Mistake(f"backend {backend!r}", "a backend's name is its folder's: small letters, no blank")
    if not backend:
        yield Mistake("neither platform nor backend", "the server must know what runs model.py: name the backend")
    if backend != "python":
        yield Mistake(f"backend {backend!r}", "the model is a model.py: preprocess is one too, compare the two")
    yield from lint_mistakes(repository)
