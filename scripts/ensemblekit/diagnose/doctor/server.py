# SPDX-License-Identifier: Apache-2.0
"""The server of an examination: made from what a probe's TARGET means, started, and its start described."""

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ensemblekit.assets.weights import ensure_checkpoint, require_vllm
from ensemblekit.diagnose.doctor.steps import Plan, Step
from ensemblekit.diagnose.explain.diagnosis import Explanation
from ensemblekit.diagnose.explain.explainer import explain_log
from ensemblekit.diagnose.probe.files import find_server, require_run_bit
from ensemblekit.diagnose.probe.target import Kind, kind_of
from ensemblekit.errors import ParameterError
from ensemblekit.paths import repo_root
from ensemblekit.releases import FLAVOURS, Flavour, default_release, get_release
from ensemblekit.repository.stage import StagedRepository, stage_repository
from ensemblekit.servers.attach import AttachedServer
from ensemblekit.servers.container import install_container
from ensemblekit.servers.embedded import EmbeddedInstallation, install_embedded
from ensemblekit.servers.process import Installation, ServerOptions, TritonServer
from ensemblekit.settings import check_settings

__all__ = ["Place", "at_url", "describe_start", "place_of"]

LOOK_S = 2.0  # between two looks into the log of a start
# The server waits for ever for the process of such a model: no reason to wait with it.
WAITS_FOR_EVER = frozenset({"E215", "S402"})
GRACE_S = 1  # the only request is the doctor's own


@dataclass(frozen=True)
class Place:
    """Where the server comes from.

    Attributes:
        target: As it was given.
        kind: What that is.
        release: The release, empty if the target does not say it.
        flavour: The flavour, None if it does not say it.
    """

    target: str
    kind: Kind
    release: str = ""
    flavour: Flavour | None = None

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
        staged = _staged(plan, folder)
        environment = dict(staged.environment)
        installation = self._installation(folder / "server")
        if plan.python:
            environment["PATH"] = os.pathsep.join(
                [str(plan.python.parent), installation.environment.get("PATH", os.environ.get("PATH", ""))]
            )
        return TritonServer(
            installation,
            staged.path.resolve(),
            folder / "server",
            ServerOptions(extra=(f"--exit-timeout-secs={GRACE_S}",)),
            environment,
        )

    def _installation(self, folder: Path) -> Installation:
        release = get_release(self.release or default_release())
        if self.kind == "release":
            return install_embedded(release, self.flavour or FLAVOURS[0], folder)
        if self.kind == "image":
            return install_container(release, self.flavour or FLAVOURS[0], "doctor", image=self.target)
        found = find_server(Path(self.target).expanduser())
        require_run_bit(found.binary)
        backends = found.binary.resolve().parent.parent / "backends"
        return EmbeddedInstallation(release, "custom-build", found.binary, backends, found.environment, emulated=False)


def place_of(target: str) -> Place:
    """Return where a server comes from.

    Raises:
        ParameterError: The text is none of the known forms.
    """
    kind = kind_of(target)
    if kind != "release":
        return Place(target, kind)
    name, _, flavour = target.partition("/")
    known: Flavour | None = next((each for each in FLAVOURS if each == (flavour or FLAVOURS[0])), None)
    if known is None:
        raise ParameterError(
            f"use {target}", found=f"no flavour {flavour!r}", hint=f"the flavours are {', '.join(FLAVOURS)}"
        )
    return Place(target, kind, name, known)


def at_url(url: str) -> AttachedServer:
    """Return the running server at a URL.

    Raises:
        KitError: It is not `host:port`, or no ready server answers there.
    """
    return AttachedServer.at(url.removeprefix("http://").rstrip("/")).start()


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


def describe_start(server: TritonServer, timeout_s: float, findings: frozenset[tuple[str, str]] = frozenset()) -> Step:
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
        return Step("start", "ok", f"ready after {elapsed:.1f} s", facts=facts)
    return Step(
        "start", "error", f"{_reason(found)} ({end} after {elapsed:.1f} s)", _details(found, server), facts=facts
    )


def _reason(found: Explanation) -> str:
    if found.causes:
        first = found.causes[0]
        return f"{first.model}: {first.title}" if first.model else first.title
    return "the server did not become ready"


def _details(found: Explanation, server: TritonServer) -> tuple[str, ...]:
    causes = tuple(str(cause) for cause in found.causes)
    unknown = tuple(f"not understood, line {each.line}: {each.text}" for each in found.unknown)
    return (*causes, *unknown, f"log: {server.log_path}")
