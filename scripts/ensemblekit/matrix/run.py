# SPDX-License-Identifier: Apache-2.0
"""Run the release matrix: start each server on the same repository, ask its ensemble once, stop it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, get_args

from ensemblekit.assets.weights import ModelSource, ensure_checkpoint
from ensemblekit.clients.grpc import ask
from ensemblekit.errors import KitError, ParameterError, UnsupportedMachine
from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from ensemblekit.matrix.cells import Cell, MatrixProvider, MatrixResult, State
from ensemblekit.paths import current_run_dir
from ensemblekit.releases import FLAVOURS, Flavour, get_release, list_releases
from ensemblekit.repository.stage import StagedRepository, stage_repository
from ensemblekit.servers.container import image_of, install_container
from ensemblekit.servers.container_engine import find_engine
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.outcome import StartOutcome
from ensemblekit.servers.process import Installation, ServerOptions, TritonServer
from ensemblekit.settings import Engine, check_settings

__all__ = ["QUESTION", "run_matrix"]

Word = TypeVar("Word", bound=str)
QUESTION = "What is the capital of France?"
SAMPLING = {"max_tokens": 32, "temperature": 0}
READY_TIMEOUT_S = 600.0  # with vLLM; the stand-in takes seconds


def run_matrix(
    *,
    releases: Sequence[str] = (),
    flavours: Sequence[str] = (),
    providers: Sequence[str] = ("embedded",),
    engine: str = "stand-in",
    on_cell: Callable[[Cell, int], None] | None = None,
) -> MatrixResult:
    """Run every cell and return what happened; also written to `matrix.json` in the run's folder.

    Args:
        releases: Which releases; all of the release table if empty.
        flavours: Which flavours; all three if empty.
        providers: `embedded`, `container`, or both.
        engine: `stand-in` (Python only, seconds a cell) or `vllm` (a minute a cell on a CPU).
        on_cell: Called after each cell with it and the number of all cells, to show progress.

    Raises:
        ParameterError: A release, flavour, provider or engine is unknown.
        FetchError: The pinned model cannot be fetched (vLLM only).
    """
    wanted = _cells(releases, flavours, providers, engine)
    folder = current_run_dir() / "matrix"
    device = check_settings().resolved_device
    source = ensure_checkpoint("smollm2-135m-instruct") if engine == "vllm" else None
    done: list[Cell] = []
    for cell in wanted:
        done.append(_run(cell, folder / f"{cell.release}-{cell.flavour}-{cell.provider}", source, device))
        MatrixResult(tuple(done)).write(current_run_dir() / "matrix.json")  # an interrupt keeps what was done
        if on_cell:
            on_cell(done[-1], len(wanted))
    return MatrixResult(tuple(done))


def _cells(releases: Sequence[str], flavours: Sequence[str], providers: Sequence[str], engine: str) -> list[Cell]:
    """Return the cells to run, none of them run yet."""
    names = [get_release(name).name for name in releases] or [row.name for row in list_releases()]
    chosen_flavours: list[Flavour] = [_one_of("FLAVOUR", name, FLAVOURS) for name in flavours or FLAVOURS]
    chosen: list[MatrixProvider] = [_one_of("PROVIDER", name, get_args(MatrixProvider)) for name in providers]
    _one_of("ENGINE", engine, get_args(Engine))
    return [
        Cell(name, flavour, provider, engine, "not run", "")
        for provider in chosen
        for name in names
        for flavour in chosen_flavours
    ]


def _one_of(what: str, value: str, legal: Sequence[Word]) -> Word:
    for word in legal:
        if word == value:
            return word
    raise ParameterError(f"use {what} {value!r}", found="no such value", hint=f"choose one of {', '.join(legal)}")


def _run(cell: Cell, folder: Path, source: ModelSource | None, device: str) -> Cell:
    """Return the cell with what happened; whatever goes wrong in one cell does not keep the next from running."""
    begin = time.monotonic()
    try:
        installation = _installation(cell, folder)
    except (UnsupportedMachine, _NotHere) as error:
        return replace(cell, detail=getattr(error, "found", str(error)))
    except KitError as error:
        return replace(cell, state="failed", detail=error.found)
    try:
        repository = stage_repository(folder / "models", source=source, device=device)
        state, detail = _serve_once(installation, repository, folder)
    except KitError as error:
        state, detail = "failed", error.found
    except Exception as error:  # the other cells are to run all the same
        state, detail = "failed", repr(error)
    return replace(cell, state=state, detail=detail, seconds=time.monotonic() - begin)


class _NotHere(Exception):  # noqa: N818 - a reason why a cell is not run, not an error
    """What a cell needs is not on this machine."""


def _installation(cell: Cell, folder: Path) -> Installation:
    release = get_release(cell.release)
    if cell.provider == "embedded":
        return install_embedded(release, cell.flavour, folder)
    engine, image = find_engine(), image_of(release, cell.flavour)
    if not engine.has_image(image):  # 20 GB are not pulled unasked
        raise _NotHere(f"the image {image} is not on this machine")
    return install_container(release, cell.flavour, current_run_dir().name, engine=engine)


def _serve_once(installation: Installation, repository: StagedRepository, folder: Path) -> tuple[State, str]:
    server = TritonServer(installation, repository.path, folder, ServerOptions(), repository.environment)
    try:
        outcome = server.attempt_start(READY_TIMEOUT_S)
        if not outcome.ready:
            return _ended(outcome)
        text = ask(server, QUESTION, sampling_parameters=SAMPLING).text
        return ("answered", text) if text.strip() else ("failed", "the answer was empty")
    finally:
        server.stop()


def _ended(outcome: StartOutcome) -> tuple[State, str]:
    refused = (outcome.kind, outcome.exit_code) == ("exited", 1) and ENSEMBLE_REFUSED in outcome.poll_errors
    return ("refused", ENSEMBLE_REFUSED) if refused else ("failed", str(outcome))
