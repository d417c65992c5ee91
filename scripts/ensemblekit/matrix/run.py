# SPDX-License-Identifier: Apache-2.0
"""The release matrix: start each server on the same repository, ask its ensemble once, and compare with the table."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from ensemblekit.assets.weights import ModelSource, ensure_checkpoint
from ensemblekit.clients.grpc import ask
from ensemblekit.errors import KitError, UnsupportedMachine, one_of
from ensemblekit.faults.poll import ENSEMBLE_REFUSED
from ensemblekit.paths import current_run_dir
from ensemblekit.releases import FLAVOURS, Flavour, get_release, has_ensembles, known_release, list_releases
from ensemblekit.repository.stage import StagedRepository, stage_repository
from ensemblekit.servers.container import image_of, install_container
from ensemblekit.servers.container_engine import find_engine
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.outcome import StartOutcome
from ensemblekit.servers.process import Installation, ServerOptions, TritonServer
from ensemblekit.settings import Engine, check_settings

__all__ = ["QUESTION", "Cell", "MatrixProvider", "MatrixResult", "State", "Verdict", "run_matrix"]

MatrixProvider = Literal["embedded", "container"]
State = Literal["answered", "refused", "failed", "not run"]
Verdict = Literal["as expected", "UNEXPECTED", "not run"]
QUESTION = "What is the capital of France?"
SAMPLING = {"max_tokens": 32, "temperature": 0}
READY_TIMEOUT_S = 600.0  # with vLLM; the stand-in takes seconds
AT_ONCE = 4  # with the stand-in: a start and a stop mostly wait; two engines would measure one machine's free memory


@dataclass(frozen=True)
class Cell:
    """One release, flavour and provider, and what happened when it was run.

    Attributes:
        state: `answered` (the ensemble loaded and answered), `refused` (the server refused the ensemble and
            exited), `failed` (anything else) or `not run`.
        detail: The answer, the server's own line, or the reason why the cell was not run.
        seconds: From the start of the process to the answer or the exit; not part of the text.
    """

    release: str
    flavour: Flavour
    provider: MatrixProvider
    engine: str
    state: State
    detail: str
    seconds: float = field(default=0.0, compare=False, repr=False)

    @property
    def expected(self) -> State:
        """What the release table makes one expect."""
        return "answered" if has_ensembles(known_release(self.release), self.flavour) else "refused"

    @property
    def verdict(self) -> Verdict:
        """Whether it happened as the release table says."""
        if self.state == "not run":
            return "not run"
        said = self.state != "refused" or ENSEMBLE_REFUSED in self.detail
        return "as expected" if self.state == self.expected and said else "UNEXPECTED"


@dataclass(frozen=True)
class MatrixResult:
    """All cells of a matrix. Its text holds no times, so that it is the same in every run."""

    cells: tuple[Cell, ...]

    @property
    def unexpected(self) -> tuple[Cell, ...]:
        """The cells that went against the release table."""
        return tuple(cell for cell in self.cells if cell.verdict == "UNEXPECTED")

    @property
    def ran(self) -> tuple[Cell, ...]:
        """The cells that were run."""
        return tuple(cell for cell in self.cells if cell.state != "not run")

    @property
    def seconds(self) -> float:
        """Seconds of all cells together."""
        return sum(cell.seconds for cell in self.cells)

    def __str__(self) -> str:
        """Return the cells as aligned text: release, flavour, provider, what happened, verdict."""
        rows = [("release", "flavour", "provider", "ensemble", "verdict")]
        rows += [(c.release, c.flavour, c.provider, c.state, c.verdict) for c in self.cells]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)

    def write(self, path: Path) -> Path:
        """Write the cells as JSON and return the file.

        Raises:
            OSError: The file cannot be written.
        """
        rows = [asdict(cell) | {"expected": cell.expected, "verdict": cell.verdict} for cell in self.cells]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seconds": self.seconds, "cells": rows}, indent=2) + "\n")
        return path

    __repr__ = __str__


def run_matrix(
    *,
    releases: Sequence[str] = (),
    flavours: Sequence[str] = (),
    providers: Sequence[str] = ("embedded",),
    engine: str = "stand-in",
    on_cell: Callable[[Cell, int], None] | None = None,
) -> MatrixResult:
    """Run every cell and return what happened; also written to `matrix.json` in the run's folder.

    With the stand-in several run at once, engines one after the other.

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

    def run(cell: Cell) -> Cell:
        return _run(cell, folder / f"{cell.release}-{cell.flavour}-{cell.provider}", source, device)

    with ThreadPoolExecutor(AT_ONCE if source is None else 1) as threads:
        for cell in threads.map(run, wanted):
            done.append(cell)
            MatrixResult(tuple(done)).write(current_run_dir() / "matrix.json")  # an interrupt keeps what was done
            if on_cell:
                on_cell(cell, len(wanted))
    return MatrixResult(tuple(done))


def _cells(releases: Sequence[str], flavours: Sequence[str], providers: Sequence[str], engine: str) -> list[Cell]:
    """Return the cells to run, none of them run yet."""
    find = get_release if "embedded" in providers else known_release  # an image is run without a wheel of its release
    names = [find(name).name for name in releases] or [row.name for row in list_releases()]
    chosen_flavours: list[Flavour] = [one_of("FLAVOUR", name, FLAVOURS) for name in flavours or FLAVOURS]
    chosen: list[MatrixProvider] = [one_of("PROVIDER", name, get_args(MatrixProvider)) for name in providers]
    one_of("ENGINE", engine, get_args(Engine))
    return [
        Cell(name, flavour, provider, engine, "not run", "")
        for provider in chosen
        for name in names
        for flavour in chosen_flavours
    ]


def _run(cell: Cell, folder: Path, source: ModelSource | None, device: str) -> Cell:
    """Return the cell with what happened; whatever goes wrong in one cell does not keep the next from running."""
    begin = time.monotonic()
    try:
        installation = _installation(cell, folder)
    except UnsupportedMachine as error:
        return replace(cell, detail=error.found)
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


def _installation(cell: Cell, folder: Path) -> Installation:
    if cell.provider == "embedded":
        return install_embedded(get_release(cell.release), cell.flavour, folder)
    release = known_release(cell.release)
    engine, image = find_engine(), image_of(release, cell.flavour)
    if not engine.has_image(image):  # 20 GB are not pulled unasked
        found = f"the image {image} is not on this machine"
        raise UnsupportedMachine("run this cell", found=found, hint=f"`{engine.name} pull {image}` first")
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
