# SPDX-License-Identifier: Apache-2.0
"""`examine`: preflight, probe, lint, start, request, in this order, so that the cheapest question is asked first."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from ensemblekit.clients.grpc import Controlled, Served
from ensemblekit.diagnose.doctor.request import build_request, entry_model, is_decoupled, send, server_config
from ensemblekit.diagnose.doctor.server import Place, at_url, describe_start, place_of
from ensemblekit.diagnose.doctor.start_cost import wasted_by
from ensemblekit.diagnose.doctor.steps import DEFAULT_SERVER, Examination, Name, Plan, State, Step
from ensemblekit.diagnose.doctor.watchdog import ModelProcess, RequestHangs, is_gone, model_processes, watched
from ensemblekit.diagnose.explain.explainer import explain_log
from ensemblekit.diagnose.lint import Finding, LintReport, lint_repository
from ensemblekit.diagnose.preflight import preflight
from ensemblekit.diagnose.probe.target import kind_of, probe_target
from ensemblekit.errors import KitError, RequestError
from ensemblekit.faults.catalogue import fault, recognise
from ensemblekit.paths import RUN_DIR_VARIABLE, current_run_dir, new_run_id, repo_root, runs_dir
from ensemblekit.records import record_values
from ensemblekit.releases import default_release, get_release
from ensemblekit.repository.config import who_writes
from ensemblekit.servers.attach import AttachedServer
from ensemblekit.servers.process import TritonServer

__all__ = ["DEFAULT_SERVER", "Plan", "examine"]

NUMPY_2 = 2
READY_TIMEOUT_S = 2.0


@dataclass
class _Course:
    """An examination under way."""

    plan: Plan
    on_step: Callable[[Step], None]
    folder: Path
    steps: list[Step] = field(default_factory=list)
    model: str = ""

    def do(self, name: Name, step: Callable[[], Step]) -> Step:
        """Do one step; an error of the kit is its result, not its end."""
        begin = time.monotonic()
        try:
            done = step()
        except KitError as error:
            lines = str(error).splitlines()
            done = Step(name, "error", f"could not {error.attempted}: {error.found}", tuple(lines[2:]))
        except OSError as error:
            done = Step(name, "error", f"{error.filename or 'a file'}: {error.strerror or error}")
        done = replace(done, seconds=time.monotonic() - begin)
        self.steps.append(done)
        self.on_step(done)
        return done

    @property
    def may_go_on(self) -> bool:
        """Whether nothing has failed yet, or that does not matter."""
        return self.plan.force or not any(step.state == "error" for step in self.steps)


def examine(plan: Plan, on_step: Callable[[Step], None] = lambda _step: None) -> Examination:
    """Return what is wrong with a repository on a server, with the least that it takes to find out.

    Args:
        plan: What is to be examined.
        on_step: Called with each step when it is done.

    Raises:
        ParameterError: The server is given in no known form.
    """
    os.environ.setdefault(RUN_DIR_VARIABLE, str(runs_dir() / new_run_id("doctor")))
    folder = current_run_dir() / "doctor"
    folder.mkdir(parents=True, exist_ok=True)
    kind = kind_of(plan.server)
    if plan.repository is None and kind != "url":
        plan = replace(plan, repository=repo_root() / "model_repo")
    course, begin, wasted = _Course(plan, on_step, folder), time.monotonic(), ""
    course.do("preflight", _preflight)
    course.do("probe", lambda: _probe(plan))
    report = list[LintReport]()
    if plan.repository is not None:
        course.do("lint", lambda: _lint(plan, report))
    if not course.may_go_on:
        wasted = wasted_by(plan.repository, report[0] if report else None) if kind != "url" else ""
        course.steps += [Step("start", "skipped", "not tried"), Step("request", "skipped", "not tried")]
    elif kind == "url":
        course.do("request", lambda: _request(course, at_url(plan.server), ()))
    else:
        _start_and_ask(course, frozenset((each.model, each.code) for one in report for each in one.findings))
    found = Examination(
        plan.repository, plan.server, course.model, tuple(course.steps), wasted, time.monotonic() - begin, folder
    )
    _record(found)
    return found


def _preflight() -> Step:
    rows = preflight(network=False)
    missing = [row for row in rows if row.required and not row.fine]
    less = [row for row in rows if not row.required and not row.fine and row.name not in ("GPU", "NVIDIA GPU")]
    details = tuple(f"{row.name}: {row.found}; {row.without}" for row in [*missing, *less])
    facts = {row.name: row.found for row in rows}
    if missing:
        return Step("preflight", "error", f"this machine lacks {missing[0].name}", details, facts=facts)
    if less:
        return Step(
            "preflight", "warning", f"less than wanted: {', '.join(row.name for row in less)}", details, facts=facts
        )
    return Step("preflight", "ok", "this machine has what it takes", facts=facts)


def _probe(plan: Plan) -> Step:
    answer = probe_target(plan.server)
    state: State = "ok" if answer.ensembles else "error" if answer.ensembles is False else "warning"
    words = {True: "knows ensembles", False: "does not know ensembles", None: "does not say whether it knows ensembles"}
    details = () if answer.ensembles else (*answer.evidence, f"fix: {answer.hint}")
    return Step(
        "probe", state, f"{plan.server} {words[answer.ensembles]} (asked in {answer.elapsed_s:.2f} s)", details,
        facts=answer.as_dict(),
    )  # fmt: skip


def _lint(plan: Plan, into: list[LintReport]) -> Step:
    place = place_of(plan.server)
    release = plan.release or place.release or default_release()
    report = lint_repository(
        plan.repository or Path(), release=release, flavour=place.flavour, python=plan.python or place.python
    )
    into.append(report)
    shown = [finding for finding in report.findings if finding.severity != "note"]
    details = tuple(map(_finding, shown))
    notes = len(report.of("note"))
    counted = f"{len(report.models)} models read, {len(report.errors)} errors, {len(report.of('warning'))} warnings"
    state: State = "error" if report.errors else "warning" if shown else "ok"
    first = f"{report.causes[0].model}: {report.causes[0].title}; " if report.causes else ""
    return Step(
        "lint", state, f"{first}{counted}, {notes} notes", details,
        facts={"release": release, "codes": [finding.code for finding in shown], "models": list(report.models)},
    )  # fmt: skip


def _finding(finding: Finding) -> str:
    follows = " (follows from another)" if finding.consequence else ""
    head = f"{finding.severity} {finding.code} {finding.place}{follows}"
    return f"{head}\n{finding.title}: {finding.why}\nfix: {finding.fix}"


def _start_and_ask(course: _Course, findings: frozenset[tuple[str, str]]) -> None:
    place: Place = place_of(course.plan.server)
    made = list[Any]()

    def start() -> Step:
        server = place.server(course.plan, course.folder)
        made.append(server)
        return describe_start(server, course.plan.ready_timeout_s, findings)

    try:
        started = course.do("start", start)
        if started.state == "error":
            course.steps.append(Step("request", "skipped", "the server did not start"))
            return
        processes = model_processes(made[0].pid or 0)
        asked = course.do("request", lambda: _request(course, made[0], processes))
        if asked.state == "error":
            made[0].kill()  # a request that hangs would keep it for half a minute
    finally:
        for server in made:
            server.stop()


def _request(course: _Course, server: Controlled, processes: tuple[ModelProcess, ...]) -> Step:
    plan = course.plan
    course.model = plan.model or (entry_model(plan.repository) if plan.repository else _loaded_ensemble(server))
    config = server_config(server, course.model)
    # of a server that was not started here, the gRPC port is not known
    generate = isinstance(server, AttachedServer) or is_decoupled(server, config)
    values = build_request(config, plan.request)
    begin = time.monotonic()
    how = "HTTP generate" if generate else "a gRPC stream"
    try:
        answer = watched(
            lambda: send(server, config, values, generate=generate, timeout_s=plan.request_timeout_s), processes
        )
    except RequestHangs as error:
        return _named(plan, error, error.dead, server)
    except RequestError as error:
        return _named(plan, error, tuple(filter(is_gone, processes)), server)
    elapsed = time.monotonic() - begin
    return Step(
        "request", "ok", f"{course.model} answered in {elapsed:.2f} s over {how}", (f"sent {values}", f"got {answer}"),
        facts={"model": course.model, "answer_s": elapsed, "sent": values, "answer": answer, "over": how},
    )  # fmt: skip


def _loaded_ensemble(server: Controlled) -> str:
    from ensemblekit.clients.http import model_states

    names = [name for name, state in model_states(server).items() if state == "READY"]
    for name in names:
        if server_config(server, name).get("platform") == "ensemble":
            return name
    if names:
        return names[0]
    raise RequestError("choose a model to ask", found="no model is loaded", hint="load one, or give a repository")


def _named(plan: Plan, error: RequestError, suspects: tuple[ModelProcess, ...], server: Served) -> Step:
    """Return the step of a request that failed, with the fault if it is known."""
    details = [error.found, f"/v2/health/ready meanwhile: {_readiness(server)}", *_in_log(server)]
    release = place_of(plan.server).release or plan.release or default_release()
    old = [each for each in suspects if _is_numpy_2(each.numpy)]
    known = recognise(error.found)
    if old and not get_release(release).numpy_2_safe:
        trap = fault("T304")
        title = f"{trap.code} {trap.title}: numpy {old[0].numpy} is loaded in the process of {old[0].model}"
        details += [f"from {old[0].packages}", f"why: {trap.cause}", f"fix: {trap.fix}", f"see {trap.link}"]
        return Step("request", "error", title, tuple(details), facts={"code": trap.code, "hangs": _hangs(error)})
    if known:
        step, name = known.values.get("step", ""), known.values.get("input", "")
        if plan.repository and step and (writer := who_writes(plan.repository, step, name)):
            details.append(writer)
        details += [f"why: {known.cause}", f"fix: {known.fix}", f"see {known.link}"]
        return Step("request", "error", f"{known.code} {known.title}", tuple(details), facts={"code": known.code})
    details.append(f"hint: {error.hint}")
    title = "no answer will come" if _hangs(error) else "no good answer, for a reason that the catalogue does not know"
    return Step("request", "error", title, tuple(details), facts={"code": "", "hangs": _hangs(error)})


def _in_log(server: Served) -> list[str]:
    """Return what the log of a server that was started here mentions."""
    if not isinstance(server, TritonServer):
        return []
    return [f"its log, line {each.line}: {each.says}" for each in explain_log(server.log_path).notices]


def _readiness(server: Served) -> str:
    try:
        return (
            f"HTTP {httpx.get(f'http://{server.http_url}/v2/health/ready', timeout=2.0, trust_env=False).status_code}"
        )
    except httpx.HTTPError as error:
        return f"no answer ({type(error).__name__})"


def _hangs(error: RequestError) -> bool:
    return isinstance(error, RequestHangs)


def _is_numpy_2(version: str) -> bool:
    return version.split(".")[0].isdigit() and int(version.split(".")[0]) >= NUMPY_2


def _record(found: Examination) -> None:
    facts = {step.name: step.facts for step in found.steps}
    record_values(
        "doctor",
        {
            "repository": str(found.repository or ""),
            "server": found.server,
            "verdict": found.headline,
            "steps": {step.name: {"state": step.state, "seconds": step.seconds} for step in found.steps},
            "ready_s": facts.get("start", {}).get("ready_s"),
            "answer_s": facts.get("request", {}).get("answer_s"),
        },
    )
