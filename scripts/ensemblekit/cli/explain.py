# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit explain`: a log from a file or a pipe, once or for as long as it is written."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import click

from ensemblekit.cli.options import WORD, as_json
from ensemblekit.errors import ParameterError

__all__ = ["command", "follow"]

PIPE = "-"


@click.command()
@click.argument("log", type=WORD)
@click.option("--follow", "follow_it", is_flag=True, help="Go on while the log is written; Ctrl-C ends it.")
@as_json
@click.pass_context
def command(context: click.Context, log: str, follow_it: bool, as_json: bool) -> None:
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
