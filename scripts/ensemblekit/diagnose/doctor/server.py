# SPDX-License-Identifier: Apache-2.0
"""The doctor's server: made from what a probe's TARGET means, started, its start described, or what it would cost."""

import json
import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ensemblekit.assets.weights import ensure_checkpoint, require_vllm
from ensemblekit.diagnose.doctor.report import Check, Plan
from ensemblekit.diagnose.explain.diagnosis import Explanation
from ensemblekit.diagnose.explain.explainer import explain_log
from ensemblekit.diagnose.lint import LintReport
from ensemblekit.diagnose.probe.files import find_server
from ensemblekit.diagnose.probe.target import Kind, kind_of, release_of
from ensemblekit.errors import KitError, ParameterError
from ensemblekit.paths import repo_root, runs_dir
from ensemblekit.releases import FLAVOURS, Flavour, default_release, get_release, known_release, release_of_image
from ensemblekit.repository.read import read_config
from ensemblekit.repository.stage import StagedRepository, stage_repository
from ensemblekit.servers.attach import AttachedServer
from ensemblekit.servers.container import install_container
from ensemblekit.servers.embedded import EmbeddedInstallation, install_embedded
from ensemblekit.servers.process import Installation, ServerOptions, TritonServer
from ensemblekit.settings import check_settings

__all__ = ["ServerSource", "describe_start", "start_cost"]

LOOK_S = 2.0  # between two looks into the log of a start
# The server waits for ever for the process of such a model: no reason to wait with it.
WAITS_FOR_EVER = frozenset({"E215", "S402"})
GRACE_S = 1  # the only request is the doctor's own
MB = 10**6
RECORDS_LOOKED_AT = 200  # the newest ones
REPORTED_S = 88  # in the report: https://github.com/triton-inference-server/server/issues/7632


@dataclass(frozen=True)
class ServerSource:
    """Where the server comes from."""

    target: str
    kind: Kind
    release: str = ""  # the release, empty if the target does not say it
    flavour: Flavour | None = None  # the flavour, None if it does not say it

    @classmethod
    def of(cls, target: str) -> Self:
        """Return where a server comes from.

        Raises:
            ParameterError: The text is none of the known forms.
        """
        kind = kind_of(target)
        if kind != "release":
            return cls(target, kind, release_of_image(target) if kind == "image" else "")
        release, flavour = release_of(target)
        return cls(target, kind, release.name, flavour)

    def running(self) -> AttachedServer:
        """Return the running server at a URL.

        Raises:
            KitError: It is not `host:port`, or no ready server answers there.
        """
        return AttachedServer.at(self.target.removeprefix("http://").rstrip("/")).start()

    @property
    def python(self) -> Path | None:
        """The interpreter that its Python models will run in, None if it cannot be known from here."""
        if self.kind == "release":
            return Path(sys.executable)
        found = shutil.which("python3") if self.kind == "disk" else None
        return Path(found) if found else None

    def server(self, plan: Plan, folder: Path) -> TritonServer:
        """Return the server on the plan's repository, not started; weights are fetched only now.

        Raises:
            KitError: The server or the weights cannot be had.
        """
        programs = _programs(plan.python) if plan.python else None
        staged = _staged(plan, folder)
        environment = dict(staged.environment)
        installation = self._installation(folder / "server")
        if programs:
            path = installation.environment.get("PATH", os.environ.get("PATH", ""))
            environment["PATH"] = f"{programs}{os.pathsep}{path}"
        options = ServerOptions(extra=(f"--exit-timeout-secs={GRACE_S}",))
        return TritonServer(installation, staged.path.resolve(), folder / "server", options, environment)

    def _installation(self, folder: Path) -> Installation:
        if self.kind == "image":
            release = known_release(self.release or default_release())
            return install_container(release, self.flavour or FLAVOURS[0], "doctor", image=self.target)
        release = get_release(self.release or default_release())
        if self.kind == "release":
            return install_embedded(release, self.flavour or FLAVOURS[0], folder)
        found = find_server(Path(self.target).expanduser())
        backends = found.binary.resolve().parent.parent / "backends"
        return EmbeddedInstallation(release, "custom-build", found.binary, backends, found.environment, emulated=False)


def _programs(python: Path) -> Path:
    """Return the folder of an interpreter, or of the one in an environment."""
    folder = python / "bin" if python.is_dir() else python.parent
    program = folder / "python3" if python.is_dir() else python
    if not (program.is_file() and os.access(program, os.X_OK)):
        raise ParameterError(
            f"run the Python models with {python}", found=f"no program {program}", hint="--python names an interpreter"
        )
    return folder


def _staged(plan: Plan, folder: Path) -> StagedRepository:
    """Return the repository to serve: a copy with weights of the kit's own, any other as it is."""
    own = repo_root() / "model_repo"
    repository = plan.repository or own
    if repository.resolve() != own.resolve():
        return StagedRepository(repository, {})
    settings = check_settings(ENGINE=plan.engine, FLAVOUR="base-plus-vllm")
    source = None
    if settings.engine == "vllm":
        require_vllm()
        source = ensure_checkpoint(settings.model)
    return stage_repository(folder / "models", source=source, device=settings.resolved_device)


class _Waits(Exception):  # noqa: N818 - ends the wait for a start; never leaves this module
    """The server waits for ever for a model's process."""


def describe_start(server: TritonServer, timeout_s: float, findings: frozenset[tuple[str, str]] = frozenset()) -> Check:
    """Start a server and return how that went; of a failure, the root cause out of its log.

    Args:
        server: Not started.
        timeout_s: Seconds it may take.
        findings: Models and codes that lint found in its repository.

    Raises:
        PortBusy: Something else listens on one of its ports.
    """
    looked = time.monotonic()

    def look(each: TritonServer) -> None:
        nonlocal looked
        if time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            if {cause.code for cause in explain_log(each.log_path).causes} & WAITS_FOR_EVER:
                raise _Waits

    begin = time.monotonic()
    try:
        outcome = server.attempt_start(timeout_s, look)
        ready, end = outcome.ready, outcome.kind
    except _Waits:
        ready, end = False, "stuck"
    elapsed, found = time.monotonic() - begin, explain_log(server.log_path, findings)
    facts = {"kind": end, "ready_s": elapsed if ready else None, "log": str(server.log_path), "triton": found.triton}
    if ready:
        return Check("start", "ok", f"ready after {elapsed:.1f} s", facts=facts)
    headline = f"{_reason(found)} ({end} after {elapsed:.1f} s)"
    return Check("start", "error", headline, _details(found, server), facts=facts)


def _reason(found: Explanation) -> str:
    if found.causes:
        first = found.causes[0]
        return f"{first.model}: {first.title}" if first.model else first.title
    return "the server did not become ready"


def _details(found: Explanation, server: TritonServer) -> tuple[str, ...]:
    causes = tuple(str(cause) for cause in found.causes)
    unknown = tuple(f"not understood, line {each.line}: {each.text}" for each in found.unknown)
    return (*causes, *unknown, f"log: {server.log_path}")


def start_cost(repository: Path | None, report: LintReport | None) -> str:
    """Return what a start that must fail would have cost, as the end of "A start would have ..."."""
    if repository is None or report is None:
        return ""
    loaded = _loaded_first(repository, report)
    size = sum(_size(repository / name) for name in loaded)
    files = f" ({size / MB:.0f} MB of files)" if size >= MB else ""
    what = f"loaded {', '.join(loaded)} first{files} and then exited" if loaded else "exited"
    last = _last_ready_s(repository)
    if last is not None:
        return f"{what} with code 1; the last good start of this repository here took {last:.0f} s"
    return f"{what} with code 1; how long that takes is not on record here (in the upstream report {REPORTED_S} s)"


def _loaded_first(repository: Path, report: LintReport) -> list[str]:
    """Return the models that would be loaded before the server gives up."""
    broken = {finding.model for finding in report.errors}
    return [path.name for path in _folders(repository) if path.name not in broken and not _is_ensemble(path)]


def _folders(repository: Path) -> list[Path]:
    return sorted(path for path in repository.iterdir() if path.is_dir())


def _is_ensemble(model: Path) -> bool:
    with suppress(KitError):  # completed by its backend, or broken
        return bool(read_config(model).ensemble_scheduling.step)
    return False


def _size(model: Path) -> int:
    """Return the bytes of a model's folder and of the local folders of weights that its model.json names."""
    named = (value for file in model.glob("*/model.json") for value in _values(file).values())
    folders = [model, *{Path(value) for value in named if isinstance(value, str) and value.startswith("/")}]
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def _values(file: Path) -> dict[str, object]:
    """Return the object in a JSON file, an empty one if there is none."""
    with suppress(OSError, ValueError):
        content = json.loads(file.read_text())
        return content if isinstance(content, dict) else {}
    return {}


def _last_ready_s(repository: Path) -> float | None:
    """Return the seconds of the last good start of this repository that is on record."""
    files = sorted(runs_dir().glob("*/records/doctor.json"), reverse=True)[:RECORDS_LOOKED_AT]
    good = (record for record in map(_values, files) if record.get("repository") == str(repository))
    return next((float(ready) for record in good if isinstance(ready := record.get("ready_s"), int | float)), None)
