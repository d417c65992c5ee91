# SPDX-License-Identifier: Apache-2.0
"""A running server at a URL: what it says of itself, and, if it may be asked so, a throw-away load.

What it says is checked against the models below, once and here: it may be no Triton server at all.
"""

import base64
import json
import time
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from ensemblekit.clients.bounded import Asker, Reply
from ensemblekit.diagnose.probe.start import FIX, PROBE_MODEL, ProbeAnswer
from ensemblekit.errors import RequestError
from ensemblekit.faults.catalogue import release_of
from ensemblekit.releases import documented_note
from ensemblekit.servers.attach import ServerAbout

__all__ = ["ModelConfig", "ask_server", "find_ensemble", "loaded_models", "model_config"]

INDEX = "/v2/repository/index"
ASK_TIMEOUT_S = 10.0  # for all questions together
OK, BAD_REQUEST, FORBIDDEN, UNAVAILABLE = 200, 400, 403, 503
ASKED_MODELS = 500  # whose configs are looked at; each is a question
SHOWN_NAMES = 10
# The load API takes a config and files along with the request, so nothing is written to the server's repository.
# It wants at least one file; an ensemble needs none, so that its content does not matter.
FILES = {"file:1/ensemblekit": base64.b64encode(b"probe").decode()}
TENSOR = {"data_type": "TYPE_STRING", "dims": [1]}
STEP = {
    "model_name": "ensemblekit_absent",
    "model_version": -1,
    "input_map": {"IN": "IN"},
    "output_map": {"OUT": "OUT"},
}
ENSEMBLE = {
    "platform": "ensemble",
    "input": [{"name": "IN", **TENSOR}],
    "output": [{"name": "OUT", **TENSOR}],
    "ensemble_scheduling": {"step": [STEP]},
}
# The same request for a model of a backend that nobody has: every server reads this config, and then misses
# the backend. It shows that a refusal of the ensemble is about the ensemble and not about the way of asking.
CONTROL = {"backend": "ensemblekit_absent", "input": ENSEMBLE["input"], "output": ENSEMBLE["output"]}


class _IndexRow(BaseModel):
    """A model in the index; without a state it was never loaded."""

    name: str
    state: str = ""


class Tensor(BaseModel):
    """An input or output of a model."""

    name: str
    data_type: str
    dims: list[int] = []
    optional: bool = False


class _Step(BaseModel):
    model_name: str


class _Steps(BaseModel):
    step: list[_Step] = []


class _Policy(BaseModel):
    decoupled: bool = False


class ModelConfig(BaseModel):
    """What a request needs to know of a model's config."""

    name: str = ""
    platform: str = ""
    max_batch_size: int = 0
    input: list[Tensor] = []
    output: list[Tensor] = []
    ensemble_scheduling: _Steps = _Steps()
    model_transaction_policy: _Policy = _Policy()

    @property
    def is_ensemble(self) -> bool:
        """Whether Triton itself runs its steps."""
        return self.platform == "ensemble"

    @property
    def steps(self) -> list[str]:
        """The models of its steps."""
        return [step.model_name for step in self.ensemble_scheduling.step]


def ask_server(url: str, *, allow_load: bool = False) -> ProbeAnswer:
    """Return whether the server at a URL knows ensembles, as far as it can be told.

    Args:
        url: `host:port` or `http://host:port` of its HTTP endpoint.
        allow_load: Ask it to load a throw-away ensemble (explicit model control only); nothing stays loaded.

    Raises:
        RequestError: Nothing answers there, or something that is no Triton server.
    """
    begin = time.monotonic()
    asker = Asker(url, ASK_TIMEOUT_S)
    about = _about(asker, url)
    extensions = ", ".join(about.extensions)
    evidence = [f"Triton {about.version}; its extensions ({extensions}) do not say whether it knows ensembles"]
    evidence += filter(None, [documented_note(release_of(about.version))])
    verdict, found = _loaded_ensembles(asker)
    evidence += found
    hint = "add --allow-load: a throw-away ensemble is offered to it, and nothing stays loaded"
    if verdict is None and allow_load:
        verdict, found, hint = _offer(asker)
        evidence += found
    hints = {True: "", False: FIX, None: hint}
    return ProbeAnswer(url, verdict, "asked", tuple(evidence), time.monotonic() - begin, hints[verdict])


def _about(asker: Asker, url: str) -> ServerAbout:
    """Return the server's own description (`/v2`)."""
    answer = asker.ask("/v2")
    try:
        if answer.status == OK:
            return answer.read(ServerAbout)
    except RequestError:
        pass  # something else answers
    raise RequestError(
        f"ask the server at {url}",
        found=f"something answers, but not a Triton server's HTTP endpoint: {answer.excerpt!r}",
        hint="give the port of Triton's HTTP endpoint (8000 by default, not gRPC 8001 or metrics 8002)",
    )


def loaded_models(asker: Asker) -> list[str]:
    """Return the names of the models that a server has loaded, sorted.

    Raises:
        RequestError: It does not say.
    """
    answer = asker.ask(INDEX, {})
    if answer.status != OK:
        raise RequestError("read the server's index", found=answer.excerpt, hint="`--model` names the model to ask")
    return sorted({row.name for row in answer.read(list[_IndexRow]) if row.state == "READY"})


def model_config(asker: Asker, model: str) -> ModelConfig:
    """Return a model's config as the server completed it.

    Raises:
        RequestError: It does not say.
    """
    answer = asker.ask(_config_path(model))
    if answer.status != OK:
        raise RequestError(
            f"read the config of {model}",
            found=answer.excerpt,
            hint="`--model` names another one; the index lists what is loaded",
        )
    return answer.read(ModelConfig).model_copy(update={"name": model})


def find_ensemble(asker: Asker, models: list[str]) -> str | None:
    """Return the first ensemble among loaded models, of which only so many are looked at; None if there is none.

    Raises:
        RequestError: A config is none.
    """
    for name in models[:ASKED_MODELS]:
        config = asker.ask(_config_path(name))
        if config.status == OK and config.read(ModelConfig).is_ensemble:
            return name
    return None


def _config_path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}/config"


def _loaded_ensembles(asker: Asker) -> tuple[bool | None, list[str]]:
    """Return True if an ensemble is loaded, and what the index says."""
    answer = asker.ask(INDEX, {})
    if answer.status != OK:
        return None, [f"its index cannot be read: {answer.excerpt}"]
    rows = answer.read(list[_IndexRow])
    ready = sorted({row.name for row in rows if row.state == "READY"})
    if ensemble := find_ensemble(asker, ready):
        return True, [f"the ensemble {ensemble!r} is loaded and READY"]
    asked = f"the first {ASKED_MODELS} of " if len(ready) > ASKED_MODELS else ""
    evidence = [f"no ensemble among {asked}its {len(ready)} loaded models"]
    if stateless := sorted(row.name for row in rows if not row.state):
        more = f" and {len(stateless) - SHOWN_NAMES} more" if len(stateless) > SHOWN_NAMES else ""
        names = ", ".join(stateless[:SHOWN_NAMES])
        evidence.append(f"in the index without any state, so never loaded: {names}{more}")
    return None, evidence


def _offer(asker: Asker) -> tuple[bool | None, list[str], str]:
    """Offer the throw-away ensemble and, if that is refused, the control; return verdict, evidence and hint."""
    offered = _load(asker, ENSEMBLE)
    evidence = [f"load API on a throw-away ensemble: {offered.excerpt}"]
    if offered.status == BAD_REQUEST and "not available" in offered.text:
        return True, evidence, ""
    if offered.status == UNAVAILABLE:
        return None, evidence, "it runs without --model-control-mode=explicit: probe its image or its files instead"
    if offered.status == FORBIDDEN:
        return None, evidence, "it takes model control from holders of its key alone: probe its image or its files"
    control = _load(asker, CONTROL)
    evidence.append(f"the same with a plain model of an absent backend: {control.excerpt}")
    if "failed to poll" in offered.text and "failed to poll" not in control.text and "backend" in control.text:
        return False, evidence, ""
    return None, evidence, "its load API takes no config from a request; probe its image or its files instead"


def _load(asker: Asker, config: dict[str, Any]) -> Reply:
    path = f"/v2/repository/models/{PROBE_MODEL}"
    answer = asker.ask(f"{path}/load", {"parameters": {"config": json.dumps(config), **FILES}})
    asker.ask(f"{path}/unload", {})  # whatever came of it, nothing stays
    return answer
