# SPDX-License-Identifier: Apache-2.0
"""A running server at a URL: what it says of itself, and, if it may be asked so, a throw-away load."""

import base64
import json
import time
from contextlib import suppress
from typing import Any

import httpx

from ensemblekit.diagnose.probe.binary import PROBE_MODEL
from ensemblekit.diagnose.probe.result import FIX, ProbeAnswer
from ensemblekit.errors import RequestError

__all__ = ["ask_server", "server_about"]

ASK_TIMEOUT_S = 5.0
EXCERPT = 120  # characters of an answer that is not Triton's
# The load API takes a config and files along with the request, so nothing is written to the server's repository.
# It wants at least one file; an ensemble needs none, so that its content does not matter.
FILES = {"file:1/ensemblekit": base64.b64encode(b"probe").decode()}
TENSOR = {"data_type": "TYPE_STRING", "dims": [1]}
ENSEMBLE = {
    "platform": "ensemble",
    "input": [{"name": "IN", **TENSOR}],
    "output": [{"name": "OUT", **TENSOR}],
    "ensemble_scheduling": {
        "step": [
            {
                "model_name": "ensemblekit_absent",
                "model_version": -1,
                "input_map": {"IN": "IN"},
                "output_map": {"OUT": "OUT"},
            }
        ]
    },
}
# The same request for a model of a backend that nobody has: every server reads this config, and then misses
# the backend. It shows that a refusal of the ensemble is about the ensemble and not about the way of asking.
CONTROL = {"backend": "ensemblekit_absent", "input": ENSEMBLE["input"], "output": ENSEMBLE["output"]}


def ask_server(url: str, *, allow_load: bool = False) -> ProbeAnswer:
    """Return whether the server at a URL knows ensembles, as far as it can be told.

    Args:
        url: `host:port` or `http://host:port` of its HTTP endpoint.
        allow_load: Ask it to load a throw-away ensemble (explicit model control only); nothing stays loaded.

    Raises:
        RequestError: Nothing answers there, or something that is no Triton server.
    """
    begin = time.monotonic()
    base = url if "://" in url else f"http://{url}"
    try:
        with httpx.Client(base_url=base.rstrip("/"), timeout=ASK_TIMEOUT_S, trust_env=False) as client:
            verdict, evidence, hint = _asked(client, url, allow_load=allow_load)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise RequestError(
            f"ask the server at {url}",
            found=f"{type(error).__name__}: {error}",
            hint=f"is it running, and is this its HTTP port (8000 by default)? Try `curl -i {base}/v2`",
        ) from error
    hint = "" if verdict else FIX if verdict is False else hint
    return ProbeAnswer(url, verdict, "asked", tuple(evidence), time.monotonic() - begin, hint)


def _asked(client: httpx.Client, url: str, *, allow_load: bool) -> tuple[bool | None, list[str], str]:
    about = server_about(client, url)
    extensions = ", ".join(about["extensions"])
    evidence = [f"Triton {about['version']}; its extensions ({extensions}) do not say whether it knows ensembles"]
    verdict, found = _loaded_ensembles(client)
    evidence += found
    hint = "add --allow-load: a throw-away ensemble is offered to it, and nothing stays loaded"
    if verdict is None and allow_load:
        verdict, found, hint = _offer(client)
        evidence += found
    return verdict, evidence, hint


def server_about(client: httpx.Client, url: str) -> dict[str, Any]:
    """Return the server's own description (`/v2`).

    Raises:
        RequestError: What answers is no Triton server.
        httpx.HTTPError: Nothing answers.
    """
    answer = client.get("/v2")
    with suppress(ValueError):
        about = answer.json()
        if answer.status_code == httpx.codes.OK and isinstance(about, dict) and "extensions" in about:
            return about
    raise RequestError(
        f"ask the server at {url}",
        found=f"something answers, but not a Triton server's HTTP endpoint: HTTP {answer.status_code} "
        f"{answer.text[:EXCERPT]!r}",
        hint="give the port of Triton's HTTP endpoint (8000 by default, not gRPC 8001 or metrics 8002)",
    )


def _loaded_ensembles(client: httpx.Client) -> tuple[bool | None, list[str]]:
    """Return True if an ensemble is loaded, and what the index says."""
    answer = client.post("/v2/repository/index", json={})
    if answer.status_code != httpx.codes.OK:
        return None, [f"its index cannot be read: HTTP {answer.status_code} {answer.text[:EXCERPT]}"]
    rows = answer.json()
    ready = sorted({row["name"] for row in rows if row.get("state") == "READY"})
    for name in ready:
        config = client.get(f"/v2/models/{name}/config")
        if config.status_code == httpx.codes.OK and config.json().get("platform") == "ensemble":
            return True, [f"the ensemble {name!r} is loaded and READY"]
    evidence = [f"no ensemble among its {len(ready)} loaded models"]
    stateless = sorted(row["name"] for row in rows if "state" not in row)
    if stateless:
        evidence.append(f"in the index without any state, so never loaded: {', '.join(stateless)}")
    return None, evidence


def _offer(client: httpx.Client) -> tuple[bool | None, list[str], str]:
    """Offer the throw-away ensemble and, if that is refused, the control; return verdict, evidence and hint."""
    status, body = _load(client, ENSEMBLE)
    evidence = [f"load API on a throw-away ensemble: HTTP {status} {body}"]
    if status == httpx.codes.BAD_REQUEST and "not available" in body:
        return True, evidence, ""
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        return None, evidence, "it runs without --model-control-mode=explicit: probe its image or its files instead"
    if status == httpx.codes.FORBIDDEN:
        return None, evidence, "it takes model control from holders of its key alone: probe its image or its files"
    control_status, control = _load(client, CONTROL)
    evidence.append(f"the same with a plain model of an absent backend: HTTP {control_status} {control}")
    if "failed to poll" in body and "failed to poll" not in control and "backend" in control:
        return False, evidence, ""
    return None, evidence, "its load API takes no config from a request; probe its image or its files instead"


def _load(client: httpx.Client, config: dict[str, Any]) -> tuple[int, str]:
    path = f"/v2/repository/models/{PROBE_MODEL}"
    answer = client.post(f"{path}/load", json={"parameters": {"config": json.dumps(config), **FILES}})
    client.post(f"{path}/unload", json={})  # whatever came of it, nothing stays
    return answer.status_code, answer.text.strip()
