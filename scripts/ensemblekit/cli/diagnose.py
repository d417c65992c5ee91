# SPDX-License-Identifier: Apache-2.0
"""What asks a server or reads its log: `ensemblekit probe`, `explain`, `doctor` and `alive`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from ensemblekit.cli.options import (
    EXIT_FAILED,
    EXIT_UNUSABLE,
    JSON_OBJECT,
    PATH,
    SECONDS,
    WORD,
    as_json,
    disk_error,
    engine,
    python,
)
from ensemblekit.errors import KitError, ParameterError

__all__ = ["alive", "doctor", "explain", "follow", "probe"]

PIPE = "-"
SERVER_HELP = "As for probe: release/flavour, a server on disk, an image, or a URL."


@click.command()
@click.argument("target", type=WORD)
@click.option("--static", is_flag=True, help="Read the library; start nothing.")
@click.option("--allow-load", is_flag=True, help="URL: let the server load a throw-away ensemble.")
@as_json
@click.pass_context
def probe(context: click.Context, target: str, static: bool, allow_load: bool, as_json: bool) -> None:
    """Does this server know ensembles? Exit code 0: yes, 1: no, 2: could not tell.

    TARGET is release/flavour (24.08/vllm-image), a server's root or its tritonserver, an image, or a URL.
    """
    from ensemblekit.diagnose.probe.target import probe_target
    from ensemblekit.faults.log import without_controls

    try:
        answer = probe_target(target, static=static, allow_load=allow_load)
    except (KitError, OSError) as error:
        told = str(error if isinstance(error, KitError) else disk_error(error))
        if as_json:
            facts = {"target": target, "ensembles": None, "verdict": "could not tell", "error": told}
            click.echo(json.dumps(facts | {"exit_code": EXIT_UNUSABLE}, indent=2))
        else:
            click.echo(without_controls(told), err=True)
        context.exit(EXIT_UNUSABLE)
    text = f"{answer}\nhow:      {answer.method}, {answer.elapsed_s:.3f} s"
    click.echo(json.dumps(answer.as_dict(), indent=2) if as_json else text)
    context.exit(answer.exit_code)


@click.command()
@click.argument("url", type=WORD)
@click.argument("model", default="")
@click.option("--deadline", type=SECONDS, default=5.0, help="Seconds for everything.")
@click.pass_context
def alive(context: click.Context, url: str, model: str, deadline: float) -> None:
    """Does a model still answer? Exit code 0: yes, 1: no; one line says what was found.

    URL is host:port of the server's HTTP endpoint; MODEL is by default the ensemble, or the only model.
    """
    from ensemblekit.diagnose.alive import ask_alive

    found = ask_alive(url, model, deadline_s=deadline)
    click.echo(str(found), err=not found.alive)
    context.exit(0 if found.alive else EXIT_FAILED)


@click.command()
@click.argument("repository", type=PATH, required=False)
@click.option("--server", type=WORD, default="24.08/base-plus-vllm", help=SERVER_HELP)
@click.option("--release", default="", help="For lint, where the server does not say it.")
@engine
@python
@click.option("--model", default="", help="The model to ask; by default the ensemble.")
@click.option("--request", type=JSON_OBJECT, help='Values by input, as JSON: {"TEXT": "Hi"}.')
@click.option("--force", is_flag=True, help="Go on although something is wrong.")
@click.option("--ready-timeout", "ready_timeout_s", type=SECONDS, default=600.0, help="Seconds of a server's start.")
@click.option("--request-timeout", "request_timeout_s", type=SECONDS, default=120.0, help="Seconds of an answer.")
@as_json
@click.pass_context
def doctor(context: click.Context, /, python: Path | None, as_json: bool, **options: Any) -> None:
    """Preflight, probe, lint, then start, then one request; stops before weights are loaded for nothing.

    REPOSITORY is a model repository; by default the kit's own.
    """
    from rich.console import Console

    from ensemblekit.batch.report import write_doctor_page
    from ensemblekit.diagnose.doctor.report import Plan, show_check, show_verdict
    from ensemblekit.diagnose.doctor.run import examine

    plan = Plan(python=python.absolute() if python else None, **options)
    console = Console()
    found = examine(plan, (lambda _check: None) if as_json else lambda check: show_check(check, console))
    page = write_doctor_page(found)
    if as_json:
        click.echo(json.dumps(found.as_dict() | {"report": str(page)}, indent=2))
    else:
        show_verdict(found, page, console)
    context.exit(found.exit_code)


@click.command()
@click.argument("log", type=WORD)
@click.option("--follow", "follow_it", is_flag=True, help="Go on while the log is written; Ctrl-C ends it.")
@as_json
@click.pass_context
def explain(context: click.Context, log: str, follow_it: bool, as_json: bool) -> None:
    """Say what happened in a Triton log, the root cause first. Exit code 0: nothing failed, 1: it did, 2: no log.

    LOG is a log of tritonserver, or `-` for standard input.
    """
    from ensemblekit.diagnose.explain.explainer import explain_lines
    from ensemblekit.diagnose.explain.source import lines_of, open_log

    if log == PIPE and sys.stdin.isatty():
        raise ParameterError(
            "read a log from standard input",
            found="a terminal",
            hint="give a file, or a pipe: `docker logs CONTAINER 2>&1 | ensemblekit explain -`",
        )
    if follow_it:
        context.exit(follow(log, sys.stdout, as_json=as_json))
    try:
        with sys.stdin.buffer if log == PIPE else open_log(Path(log)) as file:
            found = explain_lines(lines_of(file))
    except OSError as error:
        raise ParameterError(f"read the log {log}", found=str(error), hint="give a file that can be read") from error
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))
    context.exit(found.exit_code)


def follow(log: str, out: IO[str], *, as_json: bool = False) -> int:
    """Print each thing that happens as it is written, and the explanation at the end; return the exit code.

    It ends when the server gives up, when the pipe closes, or with Ctrl-C.

    Args:
        log: A path, or `-`.
        out: Where the rows go.
        as_json: Print the rows, and the explanation, as one JSON object each.

    Raises:
        ParameterError: The log cannot be read.
    """
    from ensemblekit.diagnose.explain.diagnosis import timeline_row
    from ensemblekit.diagnose.explain.explainer import Explainer

    explainer, ended = Explainer(), False
    try:
        for line in _lines(log):
            for each in explainer.feed(line):
                moment = timeline_row(each)
                row = json.dumps({"line": moment.line, "time_s": moment.time_s, "who": moment.who, "what": moment.what})
                print(row if as_json else moment, file=out, flush=True)
                ended = each.kind == "gives up" and each.time_s is None
            if ended:
                break
    except KeyboardInterrupt:
        pass  # the way to end it; what came so far is explained
    found = explainer.result()
    print(json.dumps(found.as_dict()) if as_json else f"\n{found}", file=out, flush=True)
    return found.exit_code


def _lines(log: str) -> Iterator[str]:
    from ensemblekit.diagnose.explain.source import follow_lines

    if log == PIPE:
        for raw in iter(sys.stdin.buffer.readline, b""):
            yield raw.decode(errors="replace")
        return
    yield from follow_lines(Path(log))
