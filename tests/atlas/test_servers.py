# SPDX-License-Identifier: Apache-2.0
"""Every fault of the atlas on real servers: their words are the catalogue's, and those that lint predicted."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ensemblekit.diagnose.lint import lint_repository
from ensemblekit.servers.process import TritonServer
from tests.atlas.cases import CASES, RELEASES, Case
from tests.atlas.measure import (
    HANG_TIMEOUT_S,
    NUMPY_2,
    Answer,
    ask,
    copy_repository,
    index,
    measure_all,
    new_server,
    numpy_2_environment,
    said_first,
    spoken,
)
from tests.atlas.table import README, render
from tests.atlas.test_lint import EMBEDDED

pytestmark = pytest.mark.server
LOADS = [case for case in CASES if case.how == "load"]
STARTS = [case for case in CASES if case.how == "start"]
Loads = dict[str, Answer]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Loads], Loads]:
    """Every load on both releases, and every start that must fail on 24.08."""
    return measure_all(tmp_path_factory.mktemp("atlas"), RELEASES)


@pytest.fixture(scope="module")
def loads(measured: tuple[dict[str, Loads], Loads]) -> dict[str, Loads]:
    """What each release's server says of every repository that it is asked to load."""
    return measured[0]


@pytest.fixture(scope="module")
def starts(measured: tuple[dict[str, Loads], Loads]) -> Loads:
    """How each start on 24.08 ends that must fail."""
    return measured[1]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("case", LOADS, ids=lambda case: case.folder)
def test_load_gets_the_catalogue_s_words_and_status(case: Case, release: str, loads: dict[str, Loads]) -> None:
    answer = loads[release][case.folder]

    assert answer.status == case.fault.status
    assert spoken(case, answer), f"{case.fault.pattern} not in:\n{answer.text}"
    if case.fault.hidden:
        assert "failed to poll from model repository" in answer.body
        assert not case.fault.match(answer.body)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("case", LOADS, ids=lambda case: case.folder)
def test_load_is_refused_with_the_words_that_lint_predicts(
    case: Case, release: str, loads: dict[str, Loads], tmp_path: Path
) -> None:
    report = lint_repository(case.path, release=release, **EMBEDDED)  # type: ignore[arg-type]

    predicted = said_first(report, case)
    text = loads[release][case.folder].text
    if case.code in ("E116", "E117"):  # the path differs: the server has a copy
        predicted = "failed to read text proto from "
    if case.code == "E219":  # upstream's backend words it otherwise than the kit's
        predicted = "model.json is missing"
    assert predicted
    assert predicted in text, f"{predicted!r} not in:\n{text}"


@pytest.mark.parametrize("case", LOADS, ids=lambda case: case.folder)
def test_both_releases_say_the_same(case: Case, loads: dict[str, Loads]) -> None:
    first, second = (loads[release][case.folder] for release in RELEASES)

    assert first.status == second.status
    assert _unplaced(spoken(case, first)) == _unplaced(spoken(case, second))


def _unplaced(text: str) -> str:
    return " ".join(word for word in text.split() if "/" not in word)


@pytest.mark.parametrize("case", STARTS, ids=lambda case: case.folder)
def test_start_fails_with_the_catalogue_s_words(case: Case, starts: Loads) -> None:
    answer = starts[case.folder]

    assert answer.kind == ("stuck" if case.code == "E215" else "exited")
    assert spoken(case, answer), answer.log


@pytest.mark.parametrize("case", [*LOADS, *STARTS], ids=lambda case: case.folder)
def test_explain_names_the_fault_as_root_cause(case: Case, loads: dict[str, Loads], starts: Loads) -> None:
    explainer = pytest.importorskip("ensemblekit.diagnose.explain.explainer", reason="explain is not there yet")
    answer = loads["24.08"][case.folder] if case.how == "load" else starts[case.folder]

    causes = explainer.explain_lines(f"{answer.head}{answer.log}".splitlines()).causes

    assert causes, answer.log
    assert causes[0].code in (case.root or case.code, *case.fault.same_words)


def test_readme_has_the_words_of_these_servers(loads: dict[str, Loads], starts: Loads) -> None:
    assert README.read_text() == render(loads["24.08"] | starts), "run `python -m tests.atlas.table`"


@pytest.fixture(scope="module", params=RELEASES)
def trapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with every repository that loads and breaks later."""
    folder = tmp_path_factory.mktemp("traps")
    repository = folder / "repository"
    repository.mkdir()
    for case in CASES:
        if case.how == "ask":
            copy_repository(case.path, repository)
    with new_server(repository, folder, request.param, exit_on_error=False) as server:
        yield server


def test_undeclared_input_reaches_the_model_as_a_request_parameter(trapped: TritonServer) -> None:
    status, body = ask(trapped, "input_not_declared/generate", {"TEXT": "hi", "stream": True, "temperature": 0.5})

    assert status == 200
    assert body["ANSWER"] == '{"stream":true,"temperature":0.5}'


def test_decoupled_ensemble_answers_501_to_infer(trapped: TritonServer) -> None:
    status, body = ask(trapped, "decoupled/infer", _infer(1))

    trap = _trap("T302")
    assert status == trap.fault.status
    assert body["error"] == trap.fault.message


def test_generate_with_stream_true_answers_200_with_an_error(trapped: TritonServer) -> None:
    from ensemblekit.faults.catalogue import fault

    status, body = ask(trapped, "decoupled/generate", {"TEXT": "hi", "stream": True})
    good, answer = ask(trapped, "decoupled/generate", {"TEXT": "hi", "stream": False})

    assert (status, body) == (fault("T303").status, {"error": fault("T303").message})
    assert (good, answer["ANSWER"]) == (200, "{}")


def test_batches_over_none_work_one_by_one_only(trapped: TritonServer) -> None:
    one, _ = ask(trapped, "batches_over_none/infer", _infer(1, 1))
    two, body = ask(trapped, "batches_over_none/infer", _infer(2, 1))

    trap = _trap("T305")
    assert (one, two) == (200, trap.fault.status)
    match = trap.fault.match(body["error"])
    assert match
    assert (match["model"], match["step"]) == ("batches_over_none", "echo")


def test_batches_over_an_ensemble_without_are_refused_by_the_step(trapped: TritonServer) -> None:
    one, _ = ask(trapped, "none_over_batches/infer", _infer(1))
    two, body = ask(trapped, "none_over_batches/infer", _infer(2))

    trap = _trap("T317")
    assert (one, two) == (200, trap.fault.status)
    assert "unexpected shape for input 'IN' for model 'echo_in_eights'. Expected [-1,1], got [2]" in body["error"]


@pytest.mark.parametrize("model", ["code_outside", "key_twice"])
def test_code_outside_the_folder_runs_and_the_last_of_two_keys_counts(model: str, trapped: TritonServer) -> None:
    tensor = {"name": "TEXT" if model == "key_twice" else "IN", "datatype": "BYTES", "shape": [1], "data": ["hi"]}

    status, body = ask(trapped, f"{model}/infer", {"inputs": [tensor]})

    assert status == 200
    assert body["outputs"][0]["data"] == ["hi"]  # type: ignore[index]


def test_server_without_exit_on_error_is_ready_without_the_model(trapped: TritonServer) -> None:
    status, body = ask(trapped, "half_ready/infer", _infer(1))

    trap = _trap("T306")
    assert trapped.answers()
    assert index(trapped)["half_ready"] == "(none)"
    assert status == trap.fault.status
    assert body["error"] == trap.fault.says(model="half_ready")


def test_version_folder_that_is_none_is_ignored_with_a_warning(trapped: TritonServer) -> None:
    trap = _trap("T312")
    finding = lint_repository(trap.path).findings[0]

    assert finding.says in trapped.log_path.read_text()


@pytest.mark.parametrize("release", RELEASES)
def test_numpy_2_breaks_string_tensors_and_lint_says_so(release: str, tmp_path: Path) -> None:
    trap, environment = _trap("T304"), numpy_2_environment(tmp_path / "environment")
    server = new_server(trap.path, tmp_path, release, extra=("--exit-timeout-secs=1",))
    server.environment = {"PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    report = lint_repository(trap.path, release=release, python=environment)

    assert [(finding.code, finding.model) for finding in report.findings] == [("T304", "echo")]
    assert f"has numpy {NUMPY_2}" in report.findings[0].why
    with server:
        with pytest.raises(httpx.TransportError):  # Triton hangs or goes on as ready: the kit ends its server
            ask(server, "numpy_2/infer", _infer(1), timeout_s=HANG_TIMEOUT_S)
        assert "ended (" in server.why_ended
        assert trap.fault.match(server.log_path.read_text())


def _trap(code: str) -> Case:
    return next(case for case in CASES if case.code == code)


def _infer(*shape: int) -> dict[str, object]:
    data = ["text"] * (shape[0] * (shape[1] if len(shape) > 1 else 1))
    return {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": list(shape), "data": data}]}
