# SPDX-License-Identifier: Apache-2.0
"""Nobody but the kit loads a model into a server that the kit started: the attack is done and runs no code."""

import base64
import json
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from ensemblekit.clients.http import load_model, model_states
from ensemblekit.releases import list_releases
from ensemblekit.servers.process import TritonServer
from tests.conftest import START_TIMEOUT_S, ServerMaker

pytestmark = [pytest.mark.server]
RELEASES = [row.name for row in list_releases()]
CONFIG = {"backend": "python", "input": [], "output": [{"name": "OUT", "data_type": "TYPE_STRING", "dims": [1]}]}


@pytest.fixture(params=RELEASES)
def an_explicit_server(
    request: pytest.FixtureRequest, make_server: ServerMaker, report_repository: Path
) -> TritonServer:
    """A server whose models are loaded on request, of each release."""
    return make_server(report_repository, request.param, explicit=True).start(START_TIMEOUT_S)


def _model_that_writes(proof: Path) -> tuple[str, bytes]:
    config = json.dumps(CONFIG | {"name": "evil"})
    code = f"open({str(proof)!r}, 'w').close()\nclass TritonPythonModel:\n    def execute(self, requests): return []\n"
    return config, code.encode()


def test_model_sent_over_http_without_the_key_is_refused_and_runs_nothing(
    an_explicit_server: TritonServer, tmp_path: Path
) -> None:
    config, code = _model_that_writes(tmp_path / "proof")
    body = {"parameters": {"config": config, "file:1/model.py": base64.b64encode(code).decode()}}
    base = f"http://{an_explicit_server.http_url}/v2/repository"
    for url in (f"{base}/models/evil/load", f"{base}/models/pre/unload", f"{base}/index"):
        answer = httpx.post(url, content=json.dumps(body), headers={"content-type": "text/plain"}, trust_env=False)

        assert answer.status_code == httpx.codes.FORBIDDEN

    assert not (tmp_path / "proof").exists()


def test_model_sent_over_grpc_without_the_key_is_refused_and_runs_nothing(
    an_explicit_server: TritonServer, tmp_path: Path
) -> None:
    config, code = _model_that_writes(tmp_path / "proof")
    with (
        triton.InferenceServerClient(an_explicit_server.grpc_url) as client,
        pytest.raises(InferenceServerException, match="restricted"),
    ):
        client.load_model("evil", config=config, files={"file:1/model.py": code})

    assert not (tmp_path / "proof").exists()


def test_kit_itself_still_loads(an_explicit_server: TritonServer) -> None:
    assert load_model(an_explicit_server, "pre").status == httpx.codes.OK
    assert model_states(an_explicit_server)["pre"] == "READY"


def test_command_that_is_shown_names_no_key(make_server: ServerMaker, report_repository: Path) -> None:
    server = make_server(report_repository, explicit=True)
    (key,) = server.control_headers.values()

    assert key in " ".join(server.command)
    assert key not in server.shell_command
    assert "--http-restricted-api=model-repository:" in server.shell_command


def test_each_server_has_a_key_of_its_own(make_server: ServerMaker, report_repository: Path) -> None:
    keys = {make_server(report_repository, explicit=True).control_headers.popitem()[1] for _ in range(3)}

    assert len(keys) == 3
