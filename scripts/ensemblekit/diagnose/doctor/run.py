# SPDX-License-Identifier: Apache-2.0
"""`examine`: preflight, probe, lint, start, request, in this order, so that the cheapest question is asked first."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ensemblekit.clients.bounded import Asker
from ensemblekit.clients.grpc import Served
from ensemblekit.diagnose.doctor.report import Check, DoctorReport, Name, Plan, State, shortened
from ensemblekit.diagnose.doctor.request import build_request, entry_model, is_decoupled, loaded_ensemble, send
from ensemblekit.diagnose.doctor.server import ServerSource, describe_start, start_cost
from ensemblekit.diagnose.doctor.watchdog import ModelProcess, RequestHangs, is_gone, model_processes, watched
from ensemblekit.diagnose.explain.explainer import explain_log
from ensemblekit.diagnose.lint import Finding, LintReport, lint_repository
from ensemblekit.diagnose.preflight import preflight
from ensemblekit.diagnose.probe.running import ASK_TIMEOUT_S, model_config
from ensemblekit.diagnose.probe.target import probe_target
from ensemblekit.errors import KitError, RequestError
from ensemblekit.faults.catalogue import fault, recognise
from ensemblekit.faults.log import without_controls
from ensemblekit.paths import RUN_DIR_VARIABLE, current_run_dir, new_run_id, repo_root, runs_dir
from ensemblekit.records import record_values
from ensemblekit.releases import Release, default_release, documented_note, known_release
from ensemblekit.repository.config import who_writes
from ensemblekit.servers.attach import AttachedServer
from ensemblekit.servers.process import TritonServer

__all__ = ["Plan", "examine"]

NUMPY_2 = 2
READY_TIMEOUT_S = 2.0
KNOWS = {True: "knows ensembles", False: "does not know ensembles", None: "does not say whether it knows ensembles"}


def examine(plan: Plan, on_check: Callable[[Check], None] = lambda _check: None) -> DoctorReport:
    """Return what is wrong with a repository on a server, with the least that it takes to find out.

    Raises:
        ParameterError: The server is given in no known form.
    """
    os.environ.setdefault(RUN_DIR_VARIABLE, str(runs_dir() / new_run_id("doctor")))
    folder = current_run_dir() / "doctor"
    folder.mkdir(parents=True, exist_ok=True)
    source = ServerSource.of(plan.server)
    if plan.repository is None and source.kind != "url":
        plan = replace(plan, repository=repo_root() / "model_repo")
    begin = time.monotonic()
    run = Run(plan, source, folder, on_check)
    run.do("preflight", _preflight)
    run.do("probe", run.probe)
    if plan.repository is not None:
        run.do("lint", run.lint)
    cost = ""
    if not run.may_go_on:
        cost = start_cost(plan.repository, run.linted) if source.kind != "url" else ""
        run.checks += [Check("start", "skipped", "not tried"), Check("request", "skipped", "not tried")]
    elif source.kind == "url":
        run.do("request", lambda: run.request(source.running(), ()))
    else:
        run.start_and_ask()
    seconds = time.monotonic() - begin
    found = DoctorReport(plan.repository, plan.server, run.model, tuple(run.checks), cost, seconds, folder)
    _record(found)
    return found


@dataclass
class Run:
    """The doctor at work."""

    plan: Plan
    source: ServerSource
    folder: Path
    on_check: Callable[[Check], None]
    checks: list[Check] = field(default_factory=list)
    linted: LintReport | None = None
    model: str = ""

    def do(self, name: Name, check: Callable[[], Check]) -> Check:
        """Do one check; an error of the kit is its result, not its end. Nothing in it can command a terminal."""
        begin = time.monotonic()
        try:
            done = check()
        except KitError as error:
            lines = str(error).splitlines()
            done = Check(name, "error", f"could not {error.attempted}: {error.found}", tuple(lines[2:]))
        except OSError as error:
            done = Check(name, "error", f"{error.filename or 'a file'}: {error.strerror or error}")
        headline = without_controls(done.headline)
        details = tuple(map(without_controls, done.details))
        done = replace(done, headline=headline, details=details, seconds=time.monotonic() - begin)
        self.checks.append(done)
        self.on_check(done)
        return done

    @property
    def may_go_on(self) -> bool:
        """Whether nothing has failed yet, or that does not matter."""
        return self.plan.force or not any(check.state == "error" for check in self.checks)

    @property
    def release(self) -> str:
        """The server's release, as far as it is known."""
        return self.source.release or self.plan.release or default_release()

    def probe(self) -> Check:
        """Ask whether the server knows ensembles."""
        answer = probe_target(self.plan.server)
        states: dict[bool | None, State] = {True: "ok", False: "error", None: "warning"}
        note = documented_note(self.source.release)
        details = tuple(filter(None, (note,))) if answer.ensembles else (*answer.evidence, f"fix: {answer.hint}")
        headline = f"{self.plan.server} {KNOWS[answer.ensembles]} (asked in {answer.elapsed_s:.2f} s)"
        return Check("probe", states[answer.ensembles], headline, details, facts=answer.as_dict())

    def lint(self) -> Check:
        """Read the repository."""
        release = self.plan.release or self.source.release or default_release()
        report = lint_repository(
            self.plan.repository or Path(),
            release=release,
            flavour=self.source.flavour,
            python=self.plan.python or self.source.python,
        )
        self.linted = report
        shown = [finding for finding in report.findings if finding.severity != "note"]
        counted = f"{len(report.models)} models read, {len(report.errors)} errors, {len(report.of('warning'))} warnings"
        first = f"{report.causes[0].model}: {report.causes[0].title}; " if report.causes else ""
        state: State = "warning" if shown else "ok"
        return Check(
            "lint",
            "error" if report.errors else state,
            f"{first}{counted}, {len(report.of('note'))} notes",
            tuple(map(_finding, shown)),
            facts={"release": release, "codes": [each.code for each in shown], "models": list(report.models)},
        )

    def start_and_ask(self) -> None:
        """Start the server, ask it once, and stop it."""
        findings = self.linted.findings if self.linted else ()
        codes = frozenset((each.model, each.code) for each in findings)
        made = list[TritonServer]()

        def start() -> Check:
            made.append(self.source.server(self.plan, self.folder))
            return describe_start(made[0], self.plan.ready_timeout_s, codes)

        try:
            if self.do("start", start).state == "error":
                self.checks.append(Check("request", "skipped", "the server did not start"))
                return
            processes = model_processes(made[0].pid or 0)
            if self.do("request", lambda: self.request(made[0], processes)).state == "error":
                made[0].kill()  # a request that hangs would keep it for half a minute
        finally:
            for server in made:
                server.stop()

    def request(self, server: Served, processes: tuple[ModelProcess, ...]) -> Check:
        """Ask the model once."""
        plan = self.plan
        asker = Asker(server.http_url, ASK_TIMEOUT_S)
        self.model = plan.model or (entry_model(plan.repository) if plan.repository else loaded_ensemble(asker))
        config = model_config(asker, self.model)
        # of a server that was not started here, the gRPC port is not known
        generate = isinstance(server, AttachedServer) or is_decoupled(asker, config)
        values = build_request(config, plan.request)
        how = "HTTP generate" if generate else "a gRPC stream"
        begin = time.monotonic()
        try:
            answer = watched(
                lambda: send(server, config, values, generate=generate, timeout_s=plan.request_timeout_s), processes
            )
        except RequestHangs as error:
            return self.named(error, error.dead, server)
        except RequestError as error:
            return self.named(error, tuple(filter(is_gone, processes)), server)
        elapsed = time.monotonic() - begin
        sent = shortened(values)
        facts = {"model": self.model, "answer_s": elapsed, "sent": sent, "answer": answer, "over": how}
        headline = f"{self.model} answered in {elapsed:.2f} s over {how}"
        return Check("request", "ok", headline, (f"sent {sent}", f"got {answer}"), facts=facts)

    def named(self, error: RequestError, suspects: tuple[ModelProcess, ...], server: Served) -> Check:
        """Return the check of a request that failed, with the fault if it is known."""
        hangs = isinstance(error, RequestHangs)
        details = [error.found, f"/v2/health/ready meanwhile: {_readiness(server)}", *_in_log(server)]
        old = [each for each in suspects if _is_numpy_2(each.numpy)]
        known = recognise(error.found)
        release = known_release(self.release)
        if old and isinstance(release, Release) and not release.numpy_2_safe:
            trap = fault("T304")
            headline = f"{trap.code} {trap.title}: numpy {old[0].numpy} is loaded in the process of {old[0].model}"
            details += [f"from {old[0].packages}", f"why: {trap.cause}", f"fix: {trap.fix}", f"see {trap.link}"]
            return Check("request", "error", headline, tuple(details), facts={"code": trap.code, "hangs": hangs})
        if known:
            step, name = known.values.get("step", ""), known.values.get("input", "")
            if self.plan.repository and step and (writer := who_writes(self.plan.repository, step, name)):
                details.append(writer)
            details += [f"why: {known.cause}", f"fix: {known.fix}", f"see {known.link}"]
            return Check("request", "error", f"{known.code} {known.title}", tuple(details), facts={"code": known.code})
        details.append(f"hint: {error.hint}")
        unknown = "no good answer, for a reason that the catalogue does not know"
        headline = "no answer will come" if hangs else unknown
        return Check("request", "error", headline, tuple(details), facts={"code": "", "hangs": hangs})


def _preflight() -> Check:
    rows = preflight(network=False)
    missing = [row for row in rows if row.required and not row.fine]
    less = [row for row in rows if not row.required and not row.fine and row.name != "NVIDIA GPU"]
    details = tuple(f"{row.name}: {row.found}; {row.without}" for row in [*missing, *less])
    facts = {row.name: row.found for row in rows}
    if missing:
        return Check("preflight", "error", f"this machine lacks {missing[0].name}", details, facts=facts)
    if less:
        headline = f"less than wanted: {', '.join(row.name for row in less)}"
        return Check("preflight", "warning", headline, details, facts=facts)
    return Check("preflight", "ok", "this machine has what it takes", facts=facts)


def _finding(finding: Finding) -> str:
    follows = " (follows from another)" if finding.consequence else ""
    head = f"{finding.severity} {finding.code} {finding.place}{follows}"
    return f"{head}\n{finding.title}: {finding.why}\nfix: {finding.fix}"


def _in_log(server: Served) -> list[str]:
    """Return what the log of a server that was started here mentions."""
    if not isinstance(server, TritonServer):
        return []
    return [f"its log, line {each.line}: {each.says}" for each in explain_log(server.log_path).notices]


def _readiness(server: Served) -> str:
    try:
        return f"HTTP {Asker(server.http_url, READY_TIMEOUT_S).ask('/v2/health/ready').status}"
    except RequestError as error:
        return f"no answer ({error.found})"


def _is_numpy_2(version: str) -> bool:
    return version.split(".")[0].isdigit() and int(version.split(".")[0]) >= NUMPY_2


def _record(found: DoctorReport) -> None:
    facts = {check.name: check.facts for check in found.checks}
    record_values(
        "doctor",
        {
            "repository": str(found.repository or ""),
            "server": found.server,
            "verdict": found.headline,
            "checks": {check.name: {"state": check.state, "seconds": check.seconds} for check in found.checks},
            "ready_s": facts.get("start", {}).get("ready_s"),
            "answer_s": facts.get("request", {}).get("answer_s"),
        },
    )
