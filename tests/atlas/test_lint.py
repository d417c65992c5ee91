# SPDX-License-Identifier: Apache-2.0
"""Lint names each fault of the atlas before any server starts, in the right place, and nothing else."""

import re
from pathlib import Path

import pytest

from ensemblekit.diagnose.lint import LintReport, lint_repository
from tests.atlas.cases import ATLAS, CASES, RELEASES, Case

# what the embedded servers of the other test are: no GPU, two backends
EMBEDDED = {"gpus": 0, "backends": frozenset({"python", "vllm"})}


def lint_case(case: Case, folder: Path, release: str = "24.08") -> LintReport:
    """Lint a case as its server is."""
    repository = case.stage(folder / case.folder) if case.code == "E121" else case.path
    if case.code in ("E101", "T313"):
        return lint_repository(repository, release=release, flavour="vllm-image")
    if case.code == "E218":
        return lint_repository(repository, release=release)
    return lint_repository(repository, release=release, **EMBEDDED)  # type: ignore[arg-type]


def test_every_folder_of_the_atlas_is_a_case_and_every_fault_has_one() -> None:
    from ensemblekit.faults.catalogue import FAULTS

    assert sorted(case.folder for case in CASES) == sorted(path.name for path in (ATLAS / "faults").iterdir())
    shown = {case.code for case in CASES}
    # T303 and T307 are shown by the repository of T302
    assert {entry.code for entry in FAULTS} - shown == {"T303", "T307"}


def test_shared_models_are_the_same_everywhere() -> None:
    from tests.atlas.measure import SHARED

    for name in SHARED:
        texts = {
            (path / file).read_text()
            for path in (ATLAS / "faults").glob(f"*/{name}")
            for file in ("config.pbtxt", "1/model.py")
        }
        assert len(texts) == 2, name


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("case", [c for c in CASES if c.code[0] == "E"], ids=lambda case: case.folder)
def test_fault_is_the_only_cause_that_lint_names(case: Case, release: str, tmp_path: Path) -> None:
    report = lint_case(case, tmp_path, release)

    if case.code == "E101" and release == "24.10":
        assert not report.errors  # its vLLM image has ensembles
        return
    assert {finding.code for finding in report.causes} == {case.root or case.code}
    assert case.code in {finding.code for finding in report.errors}
    assert report.exit_code == 1
    assert not report.loads
    assert all(finding.severity == "note" for finding in report.findings if finding.severity != "error")


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.code[0] == "T" and c.code != "T304"], ids=lambda case: case.folder
)
def test_late_trap_is_named_and_stops_no_load(case: Case, tmp_path: Path) -> None:
    report = lint_case(case, tmp_path)

    assert case.code in {finding.code for finding in report.findings}
    assert {finding.code for finding in report.causes} == ({case.root} if case.root else set())


def test_decoupled_repository_gets_all_three_notes_on_how_to_ask_it(tmp_path: Path) -> None:
    report = lint_case(next(case for case in CASES if case.code == "T302"), tmp_path)

    assert {finding.code for finding in report.findings} == {"T302", "T303", "T307"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder)
def test_place_of_a_finding_exists_and_its_line_shows_the_fault(case: Case, tmp_path: Path) -> None:
    for finding in lint_case(case, tmp_path).findings:
        assert finding.file.is_symlink() or finding.file.exists(), finding
        if finding.line:
            line = finding.file.read_text().splitlines()[finding.line - 1]
            assert line.strip()
            assert not line.startswith("#"), f"{finding.place} is a comment"


# the word that must stand in the line to which lint points
LINES = {
    "E102-platform-typo": "ensembel",
    "E104-backend-ensemble": "backend",
    "E109-warmup": "model_warmup",
    "E110-output-never-produced": "SCORE",
    "E112-tensor-not-written": "CLEANDE",
    "E113-tensor-not-taken": "COPY",
    "E116-unknown-field": "outputs",
    "E201-absent-model": "eccho",
    "E202-bad-input-key": "INPUT",
    "E203-bad-output-key": "OUTPUT",
    "E205-types-differ": "TEXT",
    "E212-version-not-loaded": "model_version: 7",
    "E213-tensor-incomplete": "IN",
    "T305-batches-over-none": "max_batch_size: 8",
    "T311-template-in-a-string": "${tokenizer_dir}",
}


@pytest.mark.parametrize(("folder", "word"), LINES.items(), ids=LINES)
def test_line_of_a_finding_is_that_of_the_fault(folder: str, word: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.folder == folder)
    finding = next(finding for finding in lint_case(case, tmp_path).findings if finding.code == case.code)

    assert finding.line
    assert word in finding.file.read_text().splitlines()[finding.line - 1]


@pytest.mark.parametrize(
    ("folder", "question"),
    [
        ("E102-platform-typo", 'Did you mean "ensemble"?'),
        ("E112-tensor-not-written", 'Did you mean "CLEANED"?'),
        ("E201-absent-model", 'Did you mean "echo"?'),
        ("E214-no-such-backend", 'Did you mean "python"?'),
    ],
)
def test_misspelt_word_gets_the_nearest_known_one(folder: str, question: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.folder == folder)

    assert any(question in finding.why for finding in lint_case(case, tmp_path).errors)


def test_prompt_and_generation_names_the_step_that_triton_does_not(tmp_path: Path) -> None:
    report = lint_case(next(case for case in CASES if case.code == "E208"), tmp_path)

    assert re.search(r"step of two_inputs, which takes GENERATED, TEXT", report.errors[0].why)


def test_numpy_2_is_named_only_for_releases_whose_stub_breaks(tmp_path: Path) -> None:
    (tmp_path / "lib" / "python3.11" / "site-packages" / "numpy-2.1.0.dist-info").mkdir(parents=True)
    case = next(case for case in CASES if case.code == "T304")

    finding = lint_repository(case.path, python=tmp_path).findings[0]

    assert finding.code == "T304"
    assert f"{tmp_path} has numpy 2.1.0, and 24.08 will run echo with it" in finding.why
    assert not lint_repository(case.path).findings
