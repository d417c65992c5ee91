# SPDX-License-Identifier: Apache-2.0
"""Does this server know ensembles? Asked of the server itself, in a tenth of a second, with no backend."""

import time
from pathlib import Path

from ensemblekit.diagnose.probe.binary import (
    PROBE_MODEL,
    PROBE_TIMEOUT_S,
    Probe,
    probe_binary,
    verdict_of,
    write_probe,
)
from ensemblekit.faults.log import read_log
from ensemblekit.servers.container import ContainerInstallation
from ensemblekit.servers.process import Installation, ServerOptions, TritonServer

__all__ = ["Probe", "probe_ensembles"]


def probe_ensembles(installation: Installation, folder: Path) -> Probe:
    """Start the server on one ensemble of an absent model, ask it to load that, and stop it.

    Args:
        installation: The server.
        folder: For the throw-away repository and the log.

    Raises:
        ServerError: It did not start.
        RequestError: It did not answer.
    """
    if isinstance(installation, ContainerInstallation):
        return _probe_container(installation, folder)
    return probe_binary(installation.binary, folder, environment=installation.environment)


def _probe_container(installation: ContainerInstallation, folder: Path) -> Probe:
    from ensemblekit.clients.http import load_model

    repository = write_probe(folder)
    begin = time.monotonic()
    server = TritonServer(installation, repository, folder, ServerOptions(explicit=True))
    try:
        server.start(PROBE_TIMEOUT_S)
        answer = load_model(server, PROBE_MODEL)
        elapsed = time.monotonic() - begin
    finally:
        server.stop()
    return verdict_of(answer.status, answer.body, read_log(server.log_path), elapsed)
