# SPDX-License-Identifier: Apache-2.0
"""Files that a config needs and names with blanks: what lint predicts is what a real server says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemblekit.clients.http import load_model
from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.faults.catalogue import fault
from ensemblekit.faults.log import read_log
from ensemblekit.servers.process import TritonServer
from tests.atlas.cases import ATLAS, RELEASES
from tests.atlas.measure import HANG_TIMEOUT_S, new_server

pytestmark = pytest.mark.server
LOAD_TIMEOUT_S = 30.0
TENSORS = """backend: "python"
max_batch_size: 8
input [ { name: "IN" data_type: TYPE_STRING dims: [ 1 ] } ]
"""
OUTPUT = 'output [ { name: "OUT" data_type: TYPE_STRING dims: [ 1 ] %s } ]\n'
ARCHIVE = 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/env.tar.gz" } }\n'
WARMUP = """model_warmup [ {
  name: "first" batch_size: 1
  inputs { key: "IN" value { data_type: TYPE_STRING dims: [ 1 ] input_data_file: "gone.bin" } } } ]
"""
MODELS = {
    "labels": TENSORS + OUTPUT % 'label_filename: "labels.txt"',
    "archive": TENSORS + OUTPUT % "" + ARCHIVE,
    "warmup": TENSORS + OUTPUT % "" + WARMUP,
}
CODES = {"labels": "S423", "archive": "S424", "warmup": "S423"}


def _repository(folder: Path, models: dict[str, str]) -> Path:
    code = (ATLAS / "faults" / "T305-batches-over-none" / "echo" / "1" / "model.py").read_text()
    for name, config in models.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.py").write_text(code)
        (folder / name / "config.pbtxt").write_text(config)
    return folder


@pytest.fixture(scope="module", params=RELEASES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that has loaded none of the models yet."""
    folder = tmp_path_factory.mktemp("files")
    with new_server(_repository(folder / "repository", MODELS), folder, request.param, explicit=True) as server:
        yield server


@pytest.mark.parametrize("model", MODELS)
def test_server_says_what_lint_predicts_of_a_missing_file(model: str, server: TritonServer) -> None:
    findings = [finding for finding in lint_repository(server.repository).errors if finding.model == model]

    answer = load_model(server, model, timeout_s=LOAD_TIMEOUT_S)

    assert [finding.code for finding in findings] == [CODES[model]]
    assert findings[0].says in answer.body
    assert fault(CODES[model]).match(answer.body)


def test_blank_in_the_name_of_a_python_model_ends_its_stub_and_the_start_hangs(tmp_path: Path) -> None:
    repository = _repository(tmp_path / "repository", {"my echo": TENSORS + OUTPUT % ""})

    server = new_server(repository, tmp_path, "24.08")
    outcome = server.attempt_start(HANG_TIMEOUT_S)
    server.stop()

    assert [finding.code for finding in lint_repository(repository).errors] == ["S456"]
    assert outcome.kind == "stuck"
    assert fault("S456").match(read_log(outcome.log_path))
