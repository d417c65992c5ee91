# SPDX-License-Identifier: Apache-2.0
"""Does this server know ensembles? Asked of the server itself, in a fraction of a second, with no backend."""

import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from ensemblekit.clients.http import load_model
from ensemblekit.servers.logs import parse_log, poll_errors, read_log
from ensemblekit.servers.process import Installation, ServerOptions, TritonServer

__all__ = ["Probe", "probe_ensembles"]

PROBE_MODEL = "ensemblekit_probe"
PROBE_TIMEOUT_S = 30.0  # it takes 0.3 s; a machine under load may take longer
# An ensemble whose only step does not exist. A server that knows ensembles answers 400: the model is not
# available. One that does not cannot read the config at all: 500, and the log says why.
PROBE_CONFIG = """platform: "ensemble"
input [ { name: "IN" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_STRING dims: [ 1 ] } ]
ensemble_scheduling { step [ {
  model_name: "ensemblekit_absent" model_version: -1
  input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "OUT" }
} ] }
"""


@dataclass(frozen=True)
class Probe:
    """The answer of a probe and its evidence.

    Attributes:
        ensembles: True or False; None if the server's answer fits neither.
        status: HTTP status of the load request.
        body: Its body.
        reason: The line of the log that the load API does not show, if there is one.
        elapsed_s: Seconds from the start of the process to the answer.
    """

    ensembles: bool | None
    status: int
    body: str
    reason: str
    elapsed_s: float

    def __str__(self) -> str:
        verdict = {True: "knows ensembles", False: "does not know ensembles", None: "could not tell"}[self.ensembles]
        return "\n".join(
            filter(None, [f"verdict:  {verdict}", f"load API: HTTP {self.status} {self.body}", self.reason])
        )

    __repr__ = __str__


def probe_ensembles(installation: Installation, folder: Path) -> Probe:
    """Start the server on one ensemble of an absent model, ask it to load that, and stop it.

    Args:
        installation: The server.
        folder: For the throw-away repository and the log.

    Raises:
        ServerError: It did not start.
        RequestError: It did not answer.
    """
    model = folder / "repository" / PROBE_MODEL
    (model / "1").mkdir(parents=True, exist_ok=True)
    (model / "config.pbtxt").write_text(PROBE_CONFIG)
    begin = time.monotonic()
    server = TritonServer(installation, model.parent, folder, ServerOptions(explicit=True))
    try:
        server.start(PROBE_TIMEOUT_S)
        answer = load_model(server, PROBE_MODEL)
        elapsed = time.monotonic() - begin
    finally:
        server.stop()
    errors = poll_errors(parse_log(read_log(server.log_path)))
    refused = any("unexpected platform type 'ensemble'" in error for error in errors)
    known = answer.status == httpx.codes.BAD_REQUEST and "not available" in answer.body
    return Probe(known if known != refused else None, answer.status, answer.body, next(iter(errors), ""), elapsed)
