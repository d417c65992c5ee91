# SPDX-License-Identifier: Apache-2.0
"""The command lines of upstream's build: pinned, documented, and different in one option alone."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ensemblekit.cli.main import app
from ensemblekit.errors import ParameterError
from ensemblekit.workarounds.build_plan import (
    CORE_SWITCH,
    FLAG,
    BuildPlan,
    check_prerequisites,
    compared,
    joined,
    make_plan,
    plan_json,
    shell_script,
    unmet,
)
from tests.conftest import DATA

RELEASES, VARIANTS = ("24.07", "24.08", "24.09", "24.10"), ("minimal", "full")


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    """Upstream's documented options; the file says where they come from."""
    return tomllib.loads((DATA / "upstream_build_options.toml").read_text())


@pytest.fixture(params=[(release, variant) for release in RELEASES for variant in VARIANTS], ids="-".join)
def plan(request: pytest.FixtureRequest) -> BuildPlan:
    """Each release and variant."""
    return make_plan(*request.param)


@pytest.mark.parametrize("switch", [FLAG, CORE_SWITCH, None], ids=["flag", "core-switch", "without"])
def test_plan_uses_only_what_upstream_documents(
    plan: BuildPlan, switch: str | None, documented: dict[str, Any]
) -> None:
    words = [*plan.options(switch), *plan.command(switch=switch, dryrun=True)[2:]]

    for word in words:
        option, _, value = word.partition("=")
        assert option in documented["options"], f"upstream documents no {option}"
        if option.removeprefix("--") in documented["values"]:
            assert value.partition(":")[0] in documented["values"][option.removeprefix("--")]


def test_plan_with_and_without_differ_in_the_flag_alone(plan: BuildPlan) -> None:
    assert [pair for pair in compared(plan) if pair[0] != pair[1]] == [("", FLAG)]
    assert set(plan.options(CORE_SWITCH)) ^ set(plan.options(FLAG)) == {FLAG, CORE_SWITCH}


def test_plan_names_its_release_in_everything_that_is_fetched(plan: BuildPlan) -> None:
    name = plan.release.name

    assert plan.clone[2:6] == ["--branch", f"r{name}", "--depth", "1"]
    assert [word for word in plan.options() if name in word] == [
        f"--upstream-container-version={name}",
        f"--backend=python:r{name}",
        f"--backend=vllm:r{name}",
    ]
    assert plan.image == f"localhost/ensemblekit/tritonserver:{name}-custom-build"


# what the facts say, word for word; only the option that lets it run without a terminal is the kit's
FULL_24_08 = """
-v --enable-logging --enable-stats --enable-tracing --enable-metrics --enable-gpu-metrics --enable-cpu-metrics
--enable-gpu --filesystem=gcs --filesystem=s3 --filesystem=azure_storage --endpoint=http --endpoint=grpc
--endpoint=sagemaker --endpoint=vertex-ai --upstream-container-version=24.08 --backend=python:r24.08
--backend=vllm:r24.08 --backend=ensemble
"""
CLOUD = re.compile(r"--filesystem=|sagemaker|vertex-ai")


@pytest.mark.parametrize("release", ["24.08", "24.10"])
def test_plan_full_is_upstreams_own_list_and_minimal_leaves_the_cloud_out(release: str) -> None:
    expected = FULL_24_08.replace("24.08", release).split()

    full, minimal = (make_plan(release, variant).options() for variant in ("full", "minimal"))

    assert [word for word in full if word != "--no-container-interactive"] == expected
    assert minimal == [word for word in full if not CLOUD.search(word)]


def test_plan_core_switch_is_upstreams_cmake_option() -> None:
    assert CORE_SWITCH == "--extra-core-cmake-arg=TRITON_ENABLE_ENSEMBLE=ON"


def test_joined_command_is_the_command_again(plan: BuildPlan) -> None:
    text = joined(plan.command())

    read = subprocess.run(["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
    assert read.stdout.splitlines() == plan.command()
    assert text.splitlines()[-1].strip() == FLAG


def test_shell_form_is_a_script_that_bash_reads_and_holds_every_command(plan: BuildPlan, tmp_path: Path) -> None:
    script = tmp_path / "build.sh"
    script.write_text(shell_script(plan))

    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    words = script.read_text().replace("\\\n", " ").split()
    for command in (plan.clone, plan.command(dryrun=True), plan.command(), plan.tag):
        assert " ".join(command) in " ".join(words)


def test_stand_in_build_shell_form_runs_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    shutil.copy(DATA / "stand_in_build" / "build.py", tmp_path / "source")
    (tmp_path / "build.sh").write_text(shell_script(make_plan("24.08", "minimal", source=tmp_path / "source")))
    programs = f"{DATA / 'stand_in_build'}{os.pathsep}{os.environ['PATH']}"

    done = subprocess.run(
        ["bash", tmp_path / "build.sh"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": programs, "STAND_IN_DOCKER": str(tmp_path)},
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "images" / "localhost_ensemblekit_tritonserver_24.08-custom-build").is_file()


def test_json_form_has_every_command_as_words(plan: BuildPlan) -> None:
    values = json.loads(plan_json(plan))

    assert values["build"] == plan.command()
    assert set(values["build"]) - set(values["without_ensembles"]) == {values["the_flag"]}


def test_source_of_ones_own_is_not_cloned(tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text("")

    plan = make_plan("24.08", "minimal", source=tmp_path)

    assert plan.clone == []
    assert f"cd {tmp_path}" in shell_script(plan)


@pytest.mark.parametrize(
    ("release", "variant", "words"), [("23.01", "full", "24.07, 24.08"), ("24.08", "tiny", "minimal, full")]
)
def test_plan_of_something_unknown_names_what_there_is(release: str, variant: str, words: str) -> None:
    with pytest.raises(ParameterError, match=rf"Hint: .*{words}|{words}[\s\S]*Hint: "):
        make_plan(release, variant)


def test_source_without_build_py_names_the_clone_command(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"no build.py in it[\s\S]*git clone --branch r24.10 --depth 1"):
        make_plan("24.10", "full", source=tmp_path)


def test_prerequisites_that_are_missing_say_their_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no git, no docker

    rows = check_prerequisites(make_plan("24.08", "full"), tmp_path)

    assert {"git", "docker", "Python packages", "free disk"} <= {row.name for row in rows}
    assert {"git", "docker"} <= {row.name for row in unmet(rows)}
    assert all(row.without for row in rows if not row.fine)
    assert "sudo apt install docker.io" in next(row.without for row in rows if row.name == "docker")


def test_command_prints_the_plan_and_the_table() -> None:
    done = CliRunner().invoke(app, ["build-plan", "--release", "24.10"], env={"COLUMNS": "200"})

    assert done.exit_code == 0, done.output
    assert "git clone --branch r24.10 --depth 1 https://github.com/triton-inference-server/server" in done.output
    assert done.output.count("--backend=ensemble") >= 3
    assert "free disk" in done.output
    assert "ensemblekit build-plan run --release 24.10 --variant minimal" in done.output
