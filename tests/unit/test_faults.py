# SPDX-License-Identifier: Apache-2.0
"""The fault catalogue holds together."""

import re
from typing import NamedTuple

import pytest

from ensemblekit.diagnose.explain.events import plain
from ensemblekit.diagnose.explain.explainer import explain_lines
from ensemblekit.faults.catalogue import (
    CATALOGUE,
    ENGINE_REASONS,
    FAULTS,
    container_refusal,
    fault,
    may_be_known,
    recognise,
    release_of,
    resolve,
)
from ensemblekit.faults.container import BUILD_FAULTS
from ensemblekit.faults.engine import ENGINE_FAULTS
from ensemblekit.faults.fault import Context, Doc, Fault
from ensemblekit.faults.server import SERVER_FAULTS
from tests.conftest import DATA

SAMPLE = {
    "model": "chat", "empty_model": "chat", "platform": "ensembel", "tensor": "text", "field": "model_name",
    "step": "1", "name": "other", "output": "answer", "input": "text", "path": "/models/chat/config.pbtxt",
    "missing": "pre", "here": "[1]", "there": "[2]", "origin": "pre", "size": "8", "step_size": "4", "version": "1",
    "backend": "dali", "group": "chat_0", "version_folder": "01", "bytes": "16", "repository": "/models",
    "reason": "which contains leading zeros in its directory name",
}  # fmt: skip
# their words hold a reason that the pattern must know, or the pattern belongs to another place
PARTIAL = {"E109", "E117", "E118", "E205", "E213", "E216", "E219", "E220", "T305", "T309", "T313"}


def test_codes_are_unique_and_sorted_within_their_kind() -> None:
    codes = [entry.code for entry in FAULTS]

    assert codes == sorted(set(codes))
    assert all(re.fullmatch(r"[ET]\d{3}", code) for code in codes)


@pytest.mark.parametrize("entry", FAULTS, ids=lambda entry: entry.code)
def test_every_fault_is_complete(entry: Fault) -> None:
    assert entry.title
    assert entry.cause.endswith((".", '"', "...).")), entry.cause
    assert entry.fix.endswith("."), entry.fix
    assert entry.link.startswith("https://github.com/triton-inference-server/")
    assert entry.phase == {"1": "poll", "2": "load", "3": "serve"}[entry.code[1]]
    assert all(fault(code).same_words for code in entry.same_words if code != "E117")


@pytest.mark.parametrize(
    "entry", [entry for entry in FAULTS if entry.message and entry.code not in PARTIAL], ids=lambda entry: entry.code
)
def test_the_words_of_a_fault_match_its_own_pattern(entry: Fault) -> None:
    text = entry.says(**(SAMPLE | ({"platform": "python"} if entry.code == "E103" else {})))

    assert entry.match(text), text
    found = recognise(text)
    assert found
    assert found.code in (entry.code, *entry.same_words)


def test_a_consequence_that_quotes_its_cause_gives_the_cause() -> None:
    text = (
        "ensemble 'chat' depends on 'pre' which has no loaded version. Model 'pre' loading failed with error: "
        "at least one version must be available under the version policy of model 'pre'"
    )

    found = recognise(text)

    assert found
    assert (found.code, found.model) == ("E207", "pre")


def test_a_text_without_a_known_fault_gives_none() -> None:
    assert recognise("successfully loaded 'pre'") is None


# --- one catalogue: a line for each entry, and everybody who asks says the same of it

STAMP = "0301 07:00:01.100000 1"
POLL = f"E{STAMP} model_repository_manager.cc:1460] \"Poll failed for model directory 'chat': {{}}\""
FAIL = f"E{STAMP} model_lifecycle.cc:642] \"failed to load 'chat' version 1: {{}}\""
SERVE = f'E{STAMP} infer_handler.cc:702] "{{}}"'
FIRST = f'I{STAMP} pinned_memory_manager.cc:277] "Pinned memory pool is created"'
GIVES_UP = "error: creating server: Internal - {}"
KINDS = {
    "load": FAIL,
    "poll": POLL,
    "serve": SERVE,
    "entry": f'E{STAMP} x.cc:1] "{{}}"',
    "info": f'I{STAMP} pb_stub.cc:736] "{{}}"',
    "end": GIVES_UP,
    "print": "{}",
}


class Quoted(NamedTuple):
    """A line of a log whose words a source has."""

    code: str
    kind: str
    source: str
    words: str

    @property
    def line(self) -> str:
        return KINDS[self.kind].format(self.words)


QUOTED = [
    Quoted(*row.split("\t"))
    for row in (DATA / "fault_lines.tsv").read_text().splitlines()
    if row and not row.startswith("#")
]
# what an entry says, and in which kind of line, where the message alone does not tell; the words of the server's and
# the engines' faults stand in fault_lines.tsv with their sources
LINES = {
    "E109": POLL.format("instance group should not be specified for ensemble 'chat'"),
    "E117": "[libprotobuf ERROR /x/text_format.cc:337] Error parsing text-format inference.ModelConfig: 3:17: Expected "
    "integer, got: $",
    "E118": POLL.format("'max_batch_size' must be non-negative value for chat"),
    "E205": FAIL.format(
        "in ensemble chat, ensemble tensor text: inconsistent data type: TYPE_INT32 is inferred from model a while "
        "TYPE_STRING is inferred from model b"
    ),
    "E213": FAIL.format("model input 'TEXT' must specify 'data_type' for chat"),
    "E216": FAIL.format("Internal: ValueError: bad thing happened"),
    "E219": FAIL.format(
        "Internal: FileNotFoundError: [Errno 2] No such file or directory: '/models/chat/1/model.json'"
    ),
    "E220": FAIL.format(
        "ValueError: configuration specified max_batch_size 4, but in auto-complete-config function for model 'chat' "
        "specified max_batch_size 0"
    ),
    "T305": SERVE.format(
        "in ensemble 'chat', [request id: <id_unknown>] unexpected shape for input 'TEXT' for model 'echo'. "
        "Expected [1], got [2,1]. NOTE"
    ),
    "T308": "",  # decided by the number of engines
    "T309": "AssertionError: Error in memory profiling. Initial free memory 40.2 GiB, current free memory 55.1 GiB. x",
    "C501": 'docker: Error response from daemon: could not select device driver "" with capabilities: [[gpu]].',
    "C502": "Error: runc: error setting rlimit type 7: operation not permitted",
    "C503": 'Error: could not find "netavark" in one of [/usr/lib/podman]',
    "C504": "Error: systemd cgroup flag passed, but systemd support for managing cgroups is not available",
    "C505": "docker: Error response from daemon: driver failed: Bind for 0.0.0.0:8000 failed: port is already "
    "allocated.",
    "C506": "",  # an exit code alone
    "C507": "",
    "C511": "dial tcp: lookup nvcr.io: no such host",
    "C512": "Error response from daemon: manifest for nvcr.io/nvidia/tritonserver:99.99-py3 not found: manifest "
    "unknown",
    "C513": "unauthorized: authentication required",
    "C514": "write /x: no space left on device",
    "C521": "c++: fatal error: Killed signal terminated program cc1plus",
    "C523": "fatal: Remote branch r24.08 not found in upstream origin",
    "C524": "Error response from daemon: No such container: tritonserver_builder",
    "C522": "ERROR: Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
}


UNDECIDED = {"T308", "S454", "S455"}  # by the words alone


def _line_of(entry: Fault) -> str:
    if quoted := [each.line for each in QUOTED if each.code == entry.code and entry.code not in UNDECIDED]:
        return quoted[0]
    if entry.code in LINES or not entry.message or entry.silent:
        return LINES.get(entry.code, "")
    said = entry.says(**(SAMPLE | ({"platform": "python"} if entry.code == "E103" else {})))
    return {"poll": POLL, "load": FAIL}.get(entry.phase, SERVE).format(said)


SPOKEN = [entry for entry in CATALOGUE if _line_of(entry)]
BUILD_ONLY = {entry.code for entry in BUILD_FAULTS}


def test_every_fault_that_a_server_speaks_of_has_a_line() -> None:
    silent = {entry.code for entry in CATALOGUE if not entry.expressions}

    assert {entry.code for entry in CATALOGUE} - {entry.code for entry in SPOKEN} == silent | UNDECIDED


def _alternatives(pattern: str) -> list[str]:
    """Return the alternatives of a pattern at its top level."""
    found, depth, in_class, escaped = [""], 0, False, False
    for sign in pattern:
        special = not escaped and not in_class
        if special and sign == "|" and depth == 0:
            found.append("")
            continue
        depth += special * ((sign == "(") - (sign == ")"))
        in_class = not escaped and (sign == "[" or (in_class and sign != "]"))
        escaped = sign == "\\" and not escaped
        found[-1] += sign
    return found


WITH_SOURCES = [*ENGINE_FAULTS, *SERVER_FAULTS]


@pytest.mark.parametrize("entry", WITH_SOURCES, ids=lambda entry: entry.code)
def test_every_alternative_of_a_pattern_has_a_line_with_its_source(entry: Fault) -> None:
    lines = [plain(text) for each in QUOTED if each.code == entry.code for text in (each.words, each.line)]
    alternatives = [
        one for pattern in (entry.pattern, *(old.pattern for old in entry.also)) for one in _alternatives(pattern)
    ]
    without = [one for one in alternatives if not any(re.search(one, line, re.MULTILINE) for line in lines)]

    assert not without


@pytest.mark.parametrize("quoted", QUOTED, ids=lambda quoted: quoted.code)
def test_a_quoted_line_is_known_and_nothing_else(quoted: Quoted) -> None:
    right = {quoted.code, *fault(quoted.code).same_words}
    found = recognise(quoted.line, Context(engines=1))
    explained = explain_lines([FIRST, f'I{STAMP} model_lifecycle.cc:472] "loading: chat:1"', quoted.line])

    assert len(quoted.source) > 3
    assert found
    assert found.code in right
    assert {cause.code for cause in (*explained.causes, *explained.notices)} <= right
    assert explained.exit_code == 1


@pytest.mark.parametrize("entry", SPOKEN, ids=lambda entry: entry.code)
def test_everybody_who_asks_says_the_same_of_a_line(entry: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    line, right = _line_of(entry), (entry.code, *entry.same_words)
    if entry.code in BUILD_ONLY:
        found = recognise(line, among=BUILD_FAULTS)
        assert found
        assert found.code == entry.code
        return
    context = Context(engines=1)
    by_start = recognise(f'I{STAMP} server.cc:1] "first"\n{line}\nlater\n', context)
    by_doctor = recognise(line, context)
    explained = explain_lines([FIRST, f'I{STAMP} model_lifecycle.cc:472] "loading: chat:1"', line])
    by_explain = [*explained.causes, *explained.notices]

    assert by_start
    assert by_doctor
    assert by_start.code in right
    assert (by_doctor.code, by_doctor.found, by_doctor.fix) == (by_start.code, by_start.found, by_start.fix)
    if not entry.consequence:  # of which explain says that the cause is not in the log
        assert [cause.code for cause in by_explain] == [by_start.code], str(explained)
        assert by_explain[0].fix == by_start.fix
    assert explained.exit_code == 1
    assert may_be_known(line) or STAMP in line
    here = Context(engines=1, here=True)
    if reason := recognise(line, here, among=ENGINE_REASONS):
        assert recognise(line, here).found == reason.found  # type: ignore[union-attr]
    if entry.phase == "container":
        refused = container_refusal(125, line)
        assert refused
        assert (refused.code, refused.fix) == (by_start.code, by_start.fix)


@pytest.mark.parametrize("entry", [each for each in CATALOGUE if each.code[0] in "SC"], ids=lambda entry: entry.code)
def test_every_fault_of_a_server_is_complete(entry: Fault) -> None:
    assert entry.title
    assert entry.cause.endswith(".")
    assert entry.link.startswith("https://")
    assert entry.fix
    assert all(entry.code in fault(code).same_words for code in entry.same_words if code[0] == "S")


def test_codes_are_unique_in_the_whole_catalogue() -> None:
    codes = [entry.code for entry in CATALOGUE]

    assert len(codes) == len(set(codes))


# --- one message, several causes


def _quoted(code: str) -> str:
    return next(each.line for each in QUOTED if each.code == code)


NO_BACKEND = POLL.format(
    "Invalid model name: Could not determine backend for model 'chat' with no backend in model configuration. Expected "
    "model name of the form 'model.<backend_name>'."
)
NO_CACHE = FAIL.format("Internal: ValueError: No available memory for the cache blocks. Try increasing")
NO_MODEL = FAIL.format("Internal: ModuleNotFoundError: No module named 'model'")
SLASH = {"python": '/b/libtriton_python.so {"cmdline":{"backend-directory":"/srv/backends/"}}'}


@pytest.mark.parametrize(
    ("line", "context", "code"),
    [
        (NO_CACHE, Context(engines=1), "S420"),
        (NO_CACHE, Context(engines=2), "T308"),
        (_quoted("S421"), Context(engines=2), "T308"),
        (NO_BACKEND, Context(findings=frozenset({("chat", "E106")})), "E106"),
        (NO_BACKEND, Context(findings=frozenset({("chat", "E119")})), "E119"),
        (NO_BACKEND.replace("'chat' with", "'1' with"), Context(), "S460"),
        (NO_MODEL, Context(backends=SLASH), "S454"),
    ],
    ids=["one-engine", "two-engines", "two-engines-free", "linted", "linted-too-deep", "a-number", "a-slash"],
)
def test_what_is_at_hand_decides_between_causes(line: str, context: Context, code: str) -> None:
    found = recognise(line, context)

    assert found
    assert found.code == code
    assert not found.title.startswith("one of")


@pytest.mark.parametrize(
    ("line", "titles"),
    [
        (NO_CACHE, ("S420", "T308")),
        (NO_BACKEND, ("E120", "E119", "E106")),
        (NO_MODEL, ("S454", "S455")),
    ],
    ids=["cache", "no-backend", "no-module-model"],
)
def test_when_nothing_decides_it_is_one_of_them_the_likeliest_first(line: str, titles: tuple[str, ...]) -> None:
    found = recognise(line)

    assert found
    assert found.title == "one of: " + "; ".join(fault(code).title for code in titles)
    assert all(fault(code).fix in found.fix for code in titles)


def test_one_engine_is_never_told_to_ask_for_less() -> None:
    """vLLM itself says: try increasing gpu_memory_utilization."""
    found = recognise(NO_CACHE, Context(engines=1))

    assert found
    assert found.fix.startswith("Raise gpu_memory_utilization")


@pytest.mark.parametrize(
    ("line", "code", "releases"),
    [
        ("ensemble pipe contains models that are not available: resize", "E201", "23.02"),
        ("unable to find 'libtriton_pytorch.so' for model 'det', searched: /models/det/1", "E214", "23.12"),
        ("Stub process is unhealthy and it will be restarted.", "S409", "24.05"),
        ("failed to open text file for read /m/face/config.pbtxt: No such file or directory", "E120", "22.03"),
    ],
)
def test_words_of_other_releases_are_known_with_the_releases(line: str, code: str, releases: str) -> None:
    found = recognise(line)

    assert found
    assert found.code == code
    assert releases in found.note


def test_links_are_those_of_the_release_at_hand() -> None:
    found = recognise(NO_MODEL, Context(release="25.03", backends=SLASH))
    other = recognise(_quoted("S420"), Context(release="25.03", engines=1))

    assert found
    assert other
    assert "issues/6730" in found.link
    assert "/blob/r25.03/" in other.link


@pytest.mark.parametrize(
    ("release", "link", "branch"),
    [
        ("25.08", Doc.CONFIGURATION, "r25.08"),
        ("21.05", Doc.CONFIGURATION, "r22.09"),  # docs/user_guide is younger
        ("26.08", Doc.ENSEMBLES, "r26.01"),  # the heading went to another page
        ("23.05", Doc.ENSEMBLE_CHECKS, "r23.12"),
        ("22.05", Doc.VLLM_BACKEND, "r23.10"),
        ("", Doc.CONFIGURATION, "r24.08"),
    ],
)
def test_a_link_leads_to_a_branch_that_has_the_page(release: str, link: Doc, branch: str) -> None:
    entry = next(each for each in CATALOGUE if each.link == link)

    assert f"/blob/{branch}/" in resolve(entry, {}, "", Context(release=release)).link


# what TRITON_VERSION in the branches of triton-inference-server/server says
VERSIONS = {
    **{"2.0.0": "20.06", "2.6.0": "20.12", "2.7.0": "21.02", "2.8.0": "21.03", "2.49.0": "24.08", "2.59.0": "25.06"},
    **{"2.59.1": "25.07", "2.60.0": "25.08", "2.64.0": "25.12", "2.65.0": "26.01", "2.72.0": "26.08"},
    **{"2.99.0": "", "1.12.0": "", "dev": ""},
}


@pytest.mark.parametrize("version", VERSIONS)
def test_release_of_a_server_s_version(version: str) -> None:
    assert release_of(version) == VERSIONS[version]


@pytest.mark.parametrize(
    ("backend", "release", "image"),
    [
        ("tensorrtllm", "24.08", "24.08-trtllm-python-py3"),
        ("vllm", "23.08", "23.10-vllm-python-py3 (23.10 is the first release that has it)"),
        ("tensorflow", "25.06", "25.02-py3 (25.02 is the last release that has it)"),
        ("tensorflow", "24.08", "24.08-py3"),
        ("onnxruntime", "", "<release>-py3"),
    ],
)
def test_backend_that_is_missing_names_the_image_that_has_it(backend: str, release: str, image: str) -> None:
    found = recognise(f"unable to find backend library for backend '{backend}', try", Context(release=release))

    assert found
    assert image in found.fix


def test_backend_that_no_image_has_is_named_without_one() -> None:
    found = recognise("unable to find backend library for backend 'pyton', try", Context(release="24.08"))

    assert found
    assert "nvcr.io" not in found.fix
