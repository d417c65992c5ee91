# SPDX-License-Identifier: Apache-2.0
"""Ways around the missing flag through configuration alone: each really tried, none of them gives an ensemble."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from ensemblekit.clients.http import load_model
from ensemblekit.faults.log import parse_log, poll_errors, read_log
from ensemblekit.faults.poll import GENUINE_REFUSAL
from ensemblekit.paths import current_run_dir
from ensemblekit.releases import Flavour, get_release
from ensemblekit.servers.embedded import EmbeddedInstallation, install_embedded
from ensemblekit.servers.emulation import REPLACED_CONSTANT
from ensemblekit.servers.process import ServerOptions, TritonServer

__all__ = ["Attempt", "try_configurations"]

HTTP_OK = 200
STEP = "attempt_step"
TENSORS = """input [ { name: "IN" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_STRING dims: [ 1 ] } ]
"""
SCHEDULING = f"""ensemble_scheduling {{ step [ {{
  model_name: "{STEP}" model_version: -1
  input_map {{ key: "IN" value: "IN" }} output_map {{ key: "OUT" value: "OUT" }}
}} ] }}
"""
PYTHON_MODEL = """import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", values)]) for values in inputs]
"""
_POLL = re.compile(r"^Poll failed for model directory '[^']*': (.*?)(?: for \w+)?$", re.DOTALL)


@dataclass(frozen=True)
class Attempt:
    """One way that was tried.

    Attributes:
        name: The model's name, a word for the attempt.
        what: What it is, for a reader.
        config: The lines of config.pbtxt that make it.
        backend_folder: Whether a backend folder called `ensemble` was there.
        status: HTTP status of the load request; 0 before it was tried.
        reason: Why it failed, in the server's words, or what was loaded instead.
    """

    name: str
    what: str
    config: str
    backend_folder: bool = False
    status: int = 0
    reason: str = ""

    @property
    def loaded(self) -> bool:
        """Whether the server loaded the model."""
        return self.status == HTTP_OK

    @property
    def is_ensemble(self) -> bool:
        """Whether what was loaded is an ensemble: a model whose steps Triton itself runs."""
        return self.loaded and "ensemble_scheduling" in self.config


ATTEMPTS = (
    Attempt("as_it_should_be", "the right config", f'platform: "ensemble"\n{SCHEDULING}'),
    Attempt("capital_letter", "another spelling", f'platform: "Ensemble"\n{SCHEDULING}'),
    Attempt("no_platform", "the steps alone", SCHEDULING),
    Attempt("as_backend", "as a backend", f'backend: "ensemble"\n{SCHEDULING}'),
    Attempt("in_python", "as a Python model", f'backend: "python"\n{SCHEDULING}'),
    Attempt("folder_platform", "right config, folder backends/ensemble", f'platform: "ensemble"\n{SCHEDULING}', True),
    Attempt("folder_backend", "as a backend, folder backends/ensemble", f'backend: "ensemble"\n{SCHEDULING}', True),
    Attempt("folder_no_steps", "the same without steps", 'backend: "ensemble"\n', True),
)


def try_configurations(
    release: str = "24.08", *, ensembles: bool = False, folder: Path | None = None
) -> tuple[Attempt, ...]:
    """Ask a server to load each attempt and return what it said; takes two starts of a second each.

    Args:
        release: Which Triton.
        ensembles: Whether the server was built with ensembles, to compare; without them it is the emulation.
        folder: For repositories and logs, by default in this run's folder.

    Raises:
        KitError: The server cannot be had or does not start.
    """
    folder = folder or current_run_dir() / "servers" / "attempts"
    done = list[Attempt]()
    for with_folder in (False, True):
        place = folder / f"{release}-{'on' if ensembles else 'off'}-{'folder' if with_folder else 'plain'}"
        flavour: Flavour = "custom-build" if ensembles else "vllm-image"
        installation = install_embedded(get_release(release), flavour, place)
        if with_folder:
            _write(installation.backends / "ensemble" / "model.py", PYTHON_MODEL)
        done += _try(installation, [row for row in ATTEMPTS if row.backend_folder == with_folder], place)
    return tuple(done)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _try(installation: EmbeddedInstallation, attempts: list[Attempt], place: Path) -> list[Attempt]:
    """Load each attempt on one server."""
    repository = place / "repository"
    for attempt in attempts:
        (repository / attempt.name / "1").mkdir(parents=True, exist_ok=True)
        _write(repository / attempt.name / "config.pbtxt", attempt.config + TENSORS)
    _write(repository / STEP / "config.pbtxt", f'backend: "python"\n{TENSORS}')
    _write(repository / STEP / "1" / "model.py", PYTHON_MODEL)
    with TritonServer(installation, repository, place, ServerOptions(explicit=True, load_models=(STEP,))) as server:
        statuses = {attempt.name: load_model(server, attempt.name).status for attempt in attempts}
    said = poll_errors(parse_log(read_log(server.log_path)))
    return [_told(attempt, statuses[attempt.name], said) for attempt in attempts]


def _told(attempt: Attempt, status: int, said: tuple[str, ...]) -> Attempt:
    """Return the attempt with what came of it."""
    done = replace(attempt, status=status)
    if done.loaded:
        loaded = "an ensemble" if done.is_ensemble else "loads, but as a Python model: Triton runs no steps for it"
        return replace(done, reason=loaded)
    words = next((line for line in said if f"'{attempt.name}'" in line.partition(":")[0]), "")
    match = _POLL.match(words)
    reason = match[1].replace(attempt.name, "…") if match else ""
    replaced = REPLACED_CONSTANT.strip(b"\0").decode() in reason
    return replace(done, reason=GENUINE_REFUSAL if replaced else reason)
