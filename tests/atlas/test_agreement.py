# SPDX-License-Identifier: Apache-2.0
"""Ensembles that are in no catalogue: of each, lint and a real server say the same, whether it loads or not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemblekit.clients.http import load_model
from ensemblekit.diagnose.lint import LintReport, lint_repository
from ensemblekit.servers.process import TritonServer
from tests.atlas.cases import ATLAS, RELEASES
from tests.atlas.measure import new_server

LOAD_TIMEOUT_S = 30.0
X, Y = ("X", "[ 3 ]"), ("Y", "[ 3 ]")


def _tensor(kind: str, name: str, dims: str, more: str = "") -> str:
    return f'{kind} [ {{ name: "{name}" data_type: TYPE_FP32 dims: {dims} {more} }} ]\n'


def _python(dims: str = "[ 3 ]", more: str = "", tensor: str = "") -> str:
    return f'backend: "python"\n{more}\n{_tensor("input", "IN", dims, tensor)}{_tensor("output", "OUT", dims, tensor)}'


def _step(model: str, maps: str, version: int = -1) -> str:
    """Return a step; maps are written as `IN<X OUT>Y`."""
    parts = []
    for pair in maps.split():
        kind, mark = ("input_map", "<") if "<" in pair else ("output_map", ">")
        key, value = pair.split(mark)
        parts.append(f'{kind} {{ key: "{key}" value: "{value}" }}')
    return f'{{ model_name: "{model}" model_version: {version} {" ".join(parts)} }}'


def _pipe(*steps: str, ends: str = "", more: str = "") -> str:
    ends = ends or _tensor("input", *X) + _tensor("output", *Y)
    return f'platform: "ensemble"\n{more}\n{ends}ensemble_scheduling {{ step [ {", ".join(steps)} ] }}\n'


PAIR = (
    'backend: "python"\n'
    + _tensor("input", "A", "[ 3 ]")
    + _tensor("input", "B", "[ 3 ]", "optional: true")
    + _tensor("output", "P", "[ 3 ]")
    + _tensor("output", "Q", "[ 3 ]")
)
STEPS = {
    "three": _python(),
    "any": _python("[ -1 ]"),
    "four": _python("[ 4 ]"),
    "flat": _python("[ 3, 1 ]"),
    "batch": _python(more="max_batch_size: 8"),
    "scalar": _python("[ 1 ]", "max_batch_size: 8", "reshape { shape: [ ] }"),
    "stream": _python(more="model_transaction_policy { decoupled: true }"),
    "second": _python(more="version_policy { specific { versions: [ 2 ] } }"),
    "pair": PAIR,
}
BATCHES = "max_batch_size: 4"
GOOD = {
    "brackets": "platform: 'ensemble' # a comment {\n"
    + "input < name: 'X'; data_type: TYPE_FP32; dims: 3 >\noutput: < name: 'Y', data_type: TYPE_FP32, dims: 3 >\n"
    + "ensemble_scheduling < step < model_name: 'three' model_version: -1 input_map < key: 'IN' value: 'X' > "
    + "output_map < key: 'OUT' value: 'Y' > > >\n",
    "two_ways": _pipe(_step("three", "IN<X OUT>L"), _step("any", "IN<X OUT>R"), _step("pair", "A<L B<R P>Y")),
    "backwards": _pipe(_step("three", "IN<M OUT>Y"), _step("any", "IN<X OUT>M")),
    "optional_left_out": _pipe(_step("pair", "A<X P>Y")),
    "a_version": _pipe(_step("second", "IN<X OUT>Y", 2)),
    "smaller_batches": _pipe(_step("batch", "IN<X OUT>Y"), more=BATCHES),
    "output_taken_too": _pipe(
        _step("three", "IN<X OUT>Y"),
        _step("three", "IN<Y OUT>Z"),
        ends=_tensor("input", *X) + _tensor("output", *Y) + _tensor("output", "Z", "[ 3 ]"),
    ),
    "one_tensor_twice": _pipe(_step("pair", "A<X B<X P>Y")),
    "varies": _pipe(_step("any", "IN<X OUT>M"), _step("three", "IN<M OUT>Y")),
    "after_a_stream": _pipe(_step("stream", "IN<X OUT>M"), _step("three", "IN<M OUT>Y")),
    "reshaped": _pipe(
        _step("scalar", "IN<X OUT>Y"),
        ends=_tensor("input", "X", "[ 1 ]") + _tensor("output", "Y", "[ 1 ]"),
        more=BATCHES,
    ),
    "name-1.0": _pipe(_step("three", "IN<X OUT>Y"), more='parameters { key: "a" value { string_value: "b" } }'),
    "batch_in_dims": _pipe(
        _step("batch", "IN<X OUT>Y"), ends=_tensor("input", "X", "[ -1, 3 ]") + _tensor("output", "Y", "[ -1, 3 ]")
    ),
    "optional_input": _pipe(
        _step("three", "IN<X OUT>Y"), ends=_tensor("input", *X, "optional: true") + _tensor("output", *Y)
    ),
    "says_decoupled": _pipe(_step("three", "IN<X OUT>Y"), more="model_transaction_policy { decoupled: true }"),
    "input_as_output": _pipe(
        _step("three", "IN<X OUT>Y"), ends=_tensor("input", *X) + _tensor("output", *Y) + _tensor("output", *X)
    ),
    # nobody looks at what follows: Triton loads it without a word
    "written_over": _pipe(_step("three", "IN<X OUT>Y"), _step("any", "IN<Y OUT>X")),
    "input_twice": _pipe(
        _step("three", "IN<X OUT>Y"), ends=_tensor("input", *X) + _tensor("input", *X) + _tensor("output", *Y)
    ),
    "output_declared_twice": _pipe(
        _step("three", "IN<X OUT>Y"), ends=_tensor("input", *X) + _tensor("output", *Y) + _tensor("output", *Y)
    ),
}
BROKEN = {
    "cached": _pipe(_step("stream", "IN<X OUT>Y"), more="response_cache { enable: true }"),
    "itself": _pipe(_step("itself", "X<X Y>Y")),
    "rank": _pipe(_step("flat", "IN<X OUT>Y")),
    "sizes": _pipe(_step("three", "IN<X OUT>M"), _step("four", "IN<M OUT>Y")),
    "version_not_there": _pipe(_step("second", "IN<X OUT>Y", 1)),
    "larger_batches": _pipe(_step("batch", "IN<X OUT>Y"), more="max_batch_size: 16"),
    "only_the_optional": _pipe(_step("pair", "B<X P>Y")),
    "circle_of_tensors": _pipe(_step("pair", "A<X B<M P>L"), _step("three", "IN<L OUT>M"), _step("any", "IN<M OUT>Y")),
    "no_size": _pipe(_step("any", "IN<X OUT>Y"), ends=_tensor("input", "X", "[ 0 ]") + _tensor("output", *Y)),
    "prompt_beside_stream": _pipe(_step("stream", "IN<X OUT>M"), _step("pair", "A<M B<X P>Y")),
    "two_streams": _pipe(_step("stream", "IN<X OUT>L"), _step("stream", "IN<X OUT>R"), _step("pair", "A<L B<R P>Y")),
    "outputs_of_both_sides": _pipe(
        _step("three", "IN<X OUT>Z"),
        _step("stream", "IN<Z OUT>Y"),
        ends=_tensor("input", *X) + _tensor("output", *Y) + _tensor("output", "Z", "[ 3 ]"),
    ),
    "outputs_of_two_streams": _pipe(
        _step("stream", "IN<X OUT>Z"),
        _step("stream", "IN<X OUT>Y"),
        ends=_tensor("input", *X) + _tensor("output", *Y) + _tensor("output", "Z", "[ 3 ]"),
    ),
    "input_beside_stream": _pipe(
        _step("stream", "IN<X OUT>Y"), ends=_tensor("input", *X) + _tensor("output", *Y) + _tensor("output", *X)
    ),
    "both_outputs_one": _pipe(_step("pair", "A<X P>Y Q>Y")),
    "nameless_tensor": _pipe(_step("three", "IN< OUT>Y")),
    "no_such_type": _pipe(_step("three", "IN<X OUT>Y")).replace("TYPE_FP32", "TYPE_FLOAT", 1),
    "own_batcher": _pipe(_step("batch", "IN<X OUT>Y"), more=BATCHES + "\ndynamic_batching { }"),
}


def _repository(folder: Path) -> Path:
    code = (ATLAS / "faults" / "T305-batches-over-none" / "echo" / "1" / "model.py").read_text()
    for name, config in {**STEPS, **GOOD, **BROKEN}.items():
        for version in ("1", "2") if name == "second" else ("1",):
            (folder / name / version).mkdir(parents=True)
            (folder / name / version / "model.py").write_text(code)
        (folder / name / "config.pbtxt").write_text(config)
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _repository(tmp_path_factory.mktemp("agreement") / "models")


@pytest.fixture(scope="module")
def report(repository: Path) -> LintReport:
    return lint_repository(repository, gpus=0, backends=frozenset({"python", "vllm"}))


@pytest.mark.parametrize("name", [*GOOD, *BROKEN])
def test_lint_knows_which_of_them_load(name: str, report: LintReport) -> None:
    refused = {finding.model for finding in report.errors if finding.fault.phase != "serve"}

    assert (name in refused) == (name in BROKEN)


@pytest.fixture(scope="module", params=RELEASES)
def server(
    request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server that has loaded none of the models yet."""
    folder = tmp_path_factory.mktemp("server")
    with new_server(repository, folder, request.param, explicit=True) as server:
        yield server


@pytest.mark.server
@pytest.mark.parametrize("name", [*GOOD, *BROKEN])
def test_server_loads_what_lint_says_it_will(name: str, server: TritonServer) -> None:
    answer = load_model(server, name, timeout_s=LOAD_TIMEOUT_S)

    assert (answer.status == 200) == (name in GOOD), answer.body
