# SPDX-License-Identifier: Apache-2.0
"""What upstream's build needs of this machine: one row a thing, each with its fix."""

import ast
import importlib.util
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import httpx
import psutil
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from ensemblekit.diagnose.preflight import Row
from ensemblekit.errors import KitError
from ensemblekit.paths import cache_dir, repo_root
from ensemblekit.servers.container_engine import ContainerEngine, find_engine
from ensemblekit.workarounds.build_plan import BuildPlan

__all__ = ["check_prerequisites", "missing_packages", "rows_table", "unmet"]

GB, GIB = 10**9, 2**30
# Upstream documents no figure. An estimate from image sizes: what is built, the build image and the CI image are
# each of the order of NVIDIA's vLLM image, and the compiler's own files come on top. Nobody has measured it.
IMAGES_AT_ONCE, COMPILER_GB = 3, 20
MEMORY_A_JOB_GIB = 1.0  # a C++ compiler on gRPC's sources; a rule of thumb, not upstream's
WANTED_CORES = 4  # fewer work, for longer
JOBS_A_CORE = 2  # upstream's default
DOCKER_SOCKET = Path("/var/run/docker.sock")  # upstream's script mounts this very path
NETWORK_TIMEOUT_S = 4
# what build.py of mid 2024 imports besides Python's own library; read from the source itself where it is here
USUAL_PACKAGES = ("distro", "requests")


def check_prerequisites(plan: BuildPlan, work: Path | None = None) -> tuple[Row, ...]:
    """Look at this machine and return the findings; takes a few seconds where a registry does not answer.

    Args:
        plan: What is to be built.
        work: Where the source and the build folder go, by default the kit's cache.

    Raises:
        OSError: The cache folder cannot be made.
    """
    folder = plan.source or work or cache_dir()
    checks: tuple[Callable[[], Row], ...] = (
        _git if plan.source is None else lambda: _source(plan),
        lambda: _packages(plan), _engine, _socket, lambda: _disk(plan, folder), lambda: _memory(plan), _cores,
        lambda: _site("github.com", "the components' sources cannot be cloned"),
        lambda: _site("nvcr.io", f"the base image {plan.release.name}-py3-min cannot be pulled"),
    )  # fmt: skip
    return tuple(check() for check in checks)


def _source(plan: BuildPlan) -> Row:
    return Row("source", str(plan.source), fine=True, without="", required=True)


def _git() -> Row:
    found = shutil.which("git")
    fix = "`sudo apt install git`, or --source FOLDER with a checkout"
    return Row("git", "installed" if found else "none", bool(found), fix, required=True)


def missing_packages(source: Path | None) -> tuple[str, ...]:
    """Return the Python packages that build.py imports and this Python lacks.

    Args:
        source: A checkout, whose own imports are read; None for what upstream's build.py usually imports.

    Raises:
        OSError: The source's build.py cannot be read.
        SyntaxError: It is no Python.
    """
    names = _imports(source / "build.py") if source else USUAL_PACKAGES
    return tuple(name for name in names if importlib.util.find_spec(name) is None)


def _imports(file: Path) -> tuple[str, ...]:
    """Return the top-level packages that a file imports and that are not Python's own."""
    found = set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return tuple(sorted(found - sys.stdlib_module_names))


def _packages(plan: BuildPlan) -> Row:
    missing = missing_packages(plan.source)
    found = f"no {' and no '.join(missing)}" if missing else "all that build.py imports"
    fix = f"`{_python()} -m pip install {' '.join(missing)}`"
    return Row("Python packages", found, not missing, fix, required=True)


def _python() -> str:
    """This Python, as it is typed in the kit's checkout."""
    path = Path(sys.executable)
    return str(path.relative_to(repo_root())) if path.is_relative_to(repo_root()) else str(path)


def _engine() -> Row:
    try:
        engine = find_engine("docker")
    except KitError as error:
        start = "`sudo systemctl start docker`, and `sudo usermod -aG docker $USER` so that you may use it"
        fix = start if shutil.which("docker") else "`sudo apt install docker.io`: upstream's scripts call docker itself"
        return Row("docker", error.found, fine=False, without=fix, required=True)
    return Row("docker", f"{engine.name} answers", fine=True, without="", required=True)


def _socket() -> Row:
    fix = "upstream's script mounts it into the build container: `sudo systemctl start docker`"
    try:
        there = stat.S_ISSOCK(DOCKER_SOCKET.stat().st_mode)
    except OSError:
        return Row("docker socket", f"no {DOCKER_SOCKET}", fine=False, without=fix, required=True)
    usable = there and os.access(DOCKER_SOCKET, os.R_OK | os.W_OK)
    found = str(DOCKER_SOCKET) if usable else f"{DOCKER_SOCKET}, not yours to use"
    return Row("docker socket", found, usable, fix if not there else "`sudo usermod -aG docker $USER`", required=True)


def _disk(plan: BuildPlan, folder: Path) -> Row:
    wanted = IMAGES_AT_ONCE * plan.release.vllm_image_gb + COMPILER_GB
    places = {"sources": shutil.disk_usage(_existing(folder)).free}
    images = _image_space(ContainerEngine("docker") if shutil.which("docker") else None)
    if images is not None:
        places["images"] = images
    free = min(places.values()) / GB
    fix = f"estimated need {wanted:.0f} GB (nobody has measured it): `docker system prune`, or a larger disk"
    return Row("free disk", f"{free:.0f} GB for {' and '.join(places)}", free >= wanted, fix, required=True)


def _image_space(engine: ContainerEngine | None) -> int | None:
    """Return the free bytes where docker keeps images; None if that is on another machine, or it does not answer."""
    try:
        answer = engine.ask("info", "--format", "{{.DockerRootDir}}").stdout.strip() if engine else ""
    except KitError:
        return None  # an engine that does not answer has a row of its own
    folder = Path(answer or "/nonexistent")
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _memory(plan: BuildPlan) -> Row:
    jobs = plan.jobs or JOBS_A_CORE * (psutil.cpu_count() or 1)
    free = psutil.virtual_memory().available / GIB
    fitting = max(1, int(free / MEMORY_A_JOB_GIB))
    found = f"{free:.0f} GiB free for {jobs} compile jobs"
    return Row("memory", found, free / jobs >= MEMORY_A_JOB_GIB, f"`--jobs {fitting}`, or the compiler may be killed")


def _cores() -> Row:
    cores = psutil.cpu_count() or 1
    return Row("cores", str(cores), cores >= WANTED_CORES, "it works, for hours: the compiler takes what there is")


def _site(host: str, without: str) -> Row:
    try:
        httpx.head(f"https://{host}/", timeout=NETWORK_TIMEOUT_S)
    except httpx.TransportError:
        return Row(host, "not reached", fine=False, without=without)
    return Row(host, "reached", fine=True, without=without)


def unmet(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return the required rows that are not fine."""
    return tuple(row for row in rows if row.required and not row.fine)


def rows_table(rows: Iterable[Row]) -> Table:
    """Return the prerequisites as a table; what is missing has its fix beside it."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("", "needs", "found", "fix, or what it costs"):
        table.add_column(name, no_wrap=not name, overflow="fold")
    for row in rows:
        mark = "[green]ok" if row.fine else "[red]missing" if row.required else "[yellow]less"
        table.add_row(mark, row.name, escape(row.found), "" if row.fine else escape(row.without))
    return table
