# SPDX-License-Identifier: Apache-2.0
"""Lint beyond its own fixtures: random damage to the kit's ensemble, judged by lint and by a real server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ensemblekit.clients.http import load_model
from ensemblekit.diagnose.lint import LintReport, lint_repository
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.process import TritonServer
from tests.atlas.measure import new_server
from tests.atlas.mutations import mutate
from tests.atlas.test_lint import EMBEDDED

pytestmark = pytest.mark.server
SEEDS = range(40)
START_TIMEOUT_S = 60.0
NAME = 'name: "ensemble"\n'
# where two tensors or maps are wrong at once, Triton names any one of them: the order of its hash tables
ANY_ORDER = {"E112", "E113", "E114", "E202", "E203"}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A repository with many copies of the kit's ensemble, each with one mutation, and what was done to each."""
    repository = tmp_path_factory.mktemp("mutations") / "repository"
    stage_repository(repository, source=None, device="cpu")
    text = (repository / "ensemble" / "config.pbtxt").read_text().replace(NAME, "")
    notes = {}
    for seed in SEEDS:
        name = f"mutation_{seed:02d}"
        shutil.copytree(repository / "ensemble", repository / name)
        changed, notes[name] = mutate(text, seed)
        (repository / name / "config.pbtxt").write_text(changed)
    return repository, notes


@pytest.fixture(scope="module")
def server(damaged: tuple[Path, dict[str, str]]) -> Iterator[TritonServer]:
    """A server that loads them one by one."""
    repository, _ = damaged
    with new_server(repository, repository.parent, "24.08", explicit=True) as started:
        yield started


def test_lint_and_the_server_agree_on_every_mutation(
    damaged: tuple[Path, dict[str, str]], server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    repository, notes = damaged
    report = lint_repository(repository, **EMBEDDED)  # type: ignore[arg-type]
    loaded, verbatim, wrong = 0, 0, list[str]()
    for name, note in notes.items():
        status, text = _load(server, name)
        errors = [finding for finding in report.errors if finding.model == name]
        loaded += status == 200
        if (status == 200) == bool(errors):
            wrong.append(f"{name} ({note}): HTTP {status}, lint says {[finding.code for finding in errors]}")
        elif errors:
            said = any(finding.first and finding.says in text for finding in errors)
            verbatim += said
            if not said and not ANY_ORDER & {finding.code for finding in errors}:
                wrong.append(f"{name} ({note}): lint predicts {errors[0].says!r}, the server says {text}")
    with capsys.disabled():
        print(f"\n{len(notes)} mutations: {loaded} load, {verbatim} refused in the predicted words, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)
    assert 0 < loaded < len(notes), "both kinds are there"
    assert _is_mixed(report, notes)


def _is_mixed(report: LintReport, notes: dict[str, str]) -> bool:
    return len({finding.code for finding in report.errors if finding.model in notes}) > len(ANY_ORDER)


def _load(server: TritonServer, name: str) -> tuple[int, str]:
    begin = server.log_path.stat().st_size
    answer = load_model(server, name, timeout_s=START_TIMEOUT_S)
    log = server.log_path.read_bytes()[begin:].decode(errors="replace")
    url = f"http://{server.http_url}/v2/repository/models/{name}/unload"
    httpx.post(url, json={}, timeout=START_TIMEOUT_S, headers=server.control_headers, trust_env=False)
    return answer.status, f"{answer.body}\n{log}".replace("\\n", "\n")
