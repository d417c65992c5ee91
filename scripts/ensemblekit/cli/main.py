# SPDX-License-Identifier: Apache-2.0
"""The command `ensemblekit`: runs the lessons, and shows what they run on."""

import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ensemblekit.errors import KitError, ParameterError

__all__ = ["app", "main"]

app: typer.Typer  # with all commands; made on first use, see __getattr__
_app = typer.Typer(
    help="Reproduce Triton 24.08's ensemble failure, work around it, and infer through the ensemble.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
DEFAULT_CELL_TIMEOUT_S = 1800.0  # a first start with weights to fetch on a slow line; lessons have shorter limits
_debug = False


def main() -> None:
    """Run the command line; the kit's own errors end it with one message and no traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill must stop kernels and servers too
    try:
        _add_commands(sys.argv[1:])
        _app(_join_pairs(sys.argv[1:]))
    except KitError as error:
        if _debug:
            raise
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(EXIT_USAGE if isinstance(error, ParameterError) else EXIT_FAILED)
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopped.")
        sys.exit(EXIT_INTERRUPTED)


def _join_pairs(words: list[str]) -> list[str]:
    """Turn papermill's `-p NAME VALUE` into `-p NAME=VALUE`: typer has no repeatable option with two values.

    >>> _join_pairs(["run", "-p", "RELEASE", "24.08", "--quick", "-p", "ENGINE=vllm"])
    ['run', '-p', 'RELEASE=24.08', '--quick', '-p', 'ENGINE=vllm']
    """
    joined, rest = list[str](), list(words)
    while rest:
        joined.append(rest.pop(0))
        if joined[-1] in ("-p", "--parameter") and len(rest) > 1 and "=" not in rest[0]:
            joined.append(f"{rest.pop(0)}={rest.pop(0)}")
    return joined


def _split(pair: str) -> tuple[str, str]:
    name, separator, value = pair.partition("=")
    if not separator:
        raise ParameterError(
            f"set the parameter {name}", found="no value behind it", hint="for example `-p RELEASE 24.08`"
        )
    return name, value


@_app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    global _debug
    _debug = debug


@_app.command()
def run(
    quick: Annotated[
        bool, typer.Option("--quick", help="In a minute: a Python stand-in for llm; no vLLM, no weights.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A lesson's number or name; may be given again.", metavar="LESSON"),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--parameter",
            help="Set a parameter of the lessons; may be given again.",
            metavar="NAME VALUE",
        ),
    ] = None,
    release: Annotated[str | None, typer.Option(help="Same as -p RELEASE: for example 24.08.")] = None,
    provider: Annotated[str | None, typer.Option(help="Same as -p PROVIDER: embedded, container or attach.")] = None,
    container_engine: Annotated[
        str | None, typer.Option(help="For PROVIDER container: docker or podman; found by itself if left out.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Same as -p DEVICE: auto, cpu or cuda.")] = None,
    model: Annotated[str | None, typer.Option(help="Same as -p MODEL: a checkpoint folder or a hub id.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one cell may take.", min=1)] = DEFAULT_CELL_TIMEOUT_S,
    runs_dir: Annotated[
        Path | None, typer.Option(help="Where the run's folder goes (default: runs/ of the checkout).")
    ] = None,
) -> None:
    """Execute the lessons in order and write a report; exit code 0 only if every one did what it should."""
    from ensemblekit.cli.run import execute
    from ensemblekit.servers.container_engine import choose_engine

    choose_engine(container_engine)
    shortcuts = {"RELEASE": release, "PROVIDER": provider, "DEVICE": device, "MODEL": model}
    given = _merge(
        [_split(pair) for pair in parameter or []],
        {name: value for name, value in shortcuts.items() if value is not None},
    )
    raise typer.Exit(execute(only or [], given, quick=quick, cell_timeout_s=timeout, runs_dir=runs_dir))


def _merge(pairs: list[tuple[str, str]], shortcuts: dict[str, str]) -> dict[str, str]:
    """Return all parameters; one that is given twice with different values is an error."""
    given: dict[str, str] = {}
    for name, value in [*pairs, *shortcuts.items()]:
        if given.setdefault(name, value) != value:
            raise ParameterError(
                f"set {name}",
                found=f"it is given twice, as {given[name]!r} and as {value!r}",
                hint="give it once",
            )
    return given


@_app.command()
def weights(
    model: Annotated[
        str, typer.Option(help="The pinned model, a checkpoint folder, or a hub id.")
    ] = "smollm2-135m-instruct",
) -> None:
    """Fetch the pinned model and make its checkpoint, once; prints its folder."""
    from ensemblekit.assets.weights import ensure_checkpoint

    status = Console(stderr=True)
    with status.status("looking into the cache") as line:
        source = ensure_checkpoint(model, progress=line.update)
    typer.echo(source.engine_model)


@_app.command()
def exercises(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 if one is not current.")] = False,
) -> None:
    """Make the workshop's exercises from their solutions: notebooks/solutions to notebooks/exercises."""
    from ensemblekit.batch.exercises import exercises_dir, outdated_exercises, solutions_dir, write_exercises

    outdated = outdated_exercises(solutions_dir(), exercises_dir())
    if not check:
        write_exercises(solutions_dir(), exercises_dir())
    verb = "outdated" if check else "written"
    typer.echo("\n".join(f"{verb}: {name}" for name in outdated) or "Every exercise is current.")
    raise typer.Exit(EXIT_FAILED if check and outdated else 0)


@_app.command()
def preflight() -> None:
    """Show what this machine can run; exit code 1 if something required is missing."""
    from ensemblekit.diagnose.preflight import preflight as look

    table = Table("", "thing", "found", "what it costs to be without it", title="What this machine can run")
    rows = look()
    for row in rows:
        mark = "[green]ok" if row.fine else "[red]missing" if row.required else "[yellow]less"
        table.add_row(mark, row.name, row.found, "" if row.fine else row.without)
    Console().print(table)
    raise typer.Exit(EXIT_FAILED if any(row.required and not row.fine for row in rows) else 0)


@_app.command()
def releases() -> None:
    """List the Triton releases the lessons know."""
    from ensemblekit.releases import default_release, list_releases

    names = ("release", "Triton", "vLLM", "Python", "CUDA", "GB", "ensembles", "numpy 2")
    caption = f"vLLM to ensembles: NVIDIA's vLLM image. The lessons use {default_release()} unless told otherwise."
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), caption=caption)
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in list_releases():
        facts = (row.name, row.triton, row.vllm, row.python, row.cuda, f"{row.vllm_image_gb:g}")
        table.add_row(*facts, _yes(row.ensemble_in_vllm_image), _yes(row.numpy_2_safe))
    Console().print(table)


def _yes(value: bool) -> str:
    return "[green]yes" if value else "[red]no"


@_app.command()
def serve(
    release: Annotated[str, typer.Option(help="Which Triton.")] = "24.08",
    flavour: Annotated[str, typer.Option(help="vllm-image, base-plus-vllm or custom-build.")] = "base-plus-vllm",
    engine: Annotated[str, typer.Option(help="vllm, or stand-in: Python-only models.")] = "vllm",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    model: Annotated[
        str, typer.Option(help="The pinned model, a checkpoint folder, or a hub id.")
    ] = "smollm2-135m-instruct",
    timeout: Annotated[float, typer.Option(help="Seconds the server may take to load.", min=1)] = 600.0,
    provider: Annotated[str, typer.Option(help="embedded (PyPI wheels) or container.")] = "embedded",
    container_engine: Annotated[
        str | None, typer.Option(help="For PROVIDER container: docker or podman; found by itself if left out.")
    ] = None,
) -> None:
    """Start a server on the staged model repository and keep it until Ctrl-C."""
    from ensemblekit.cli.serve import serve_forever
    from ensemblekit.servers.container_engine import choose_engine

    choose_engine(container_engine)
    parameters = {"RELEASE": release, "FLAVOUR": flavour, "ENGINE": engine, "DEVICE": device, "MODEL": model}
    parameters["PROVIDER"] = provider
    serve_forever(parameters, ready_timeout_s=timeout)


@_app.command()
def matrix(
    release: Annotated[list[str] | None, typer.Option(help="A release; may be given again. Default: all.")] = None,
    flavour: Annotated[list[str] | None, typer.Option(help="A flavour; may be given again. Default: all.")] = None,
    provider: Annotated[
        list[str] | None, typer.Option(help="embedded or container; may be given again. Default: both.")
    ] = None,
    engine: Annotated[str, typer.Option(help="stand-in: seconds a cell; vllm: a minute a cell.")] = "stand-in",
    container_engine: Annotated[
        str | None, typer.Option(help="For PROVIDER container: docker or podman; found by itself if left out.")
    ] = None,
) -> None:
    """Run every release and flavour and compare with the release table; exit code 1 if one is unexpected."""
    from ensemblekit.cli.matrix import matrix_command
    from ensemblekit.servers.container_engine import choose_engine

    choose_engine(container_engine)
    providers = provider or ["embedded", "container"]
    raise typer.Exit(matrix_command(release or [], flavour or [], providers, engine))


# commands and groups that live elsewhere: each in a module `command` or so, under its name or as `app`
COMMANDS = {
    "bench": "ensemblekit.cli.bench",
    "probe": "ensemblekit.cli.probe",
    "lint": "ensemblekit.cli.lint",
    "explain": "ensemblekit.cli.explain",
    "doctor": "ensemblekit.cli.doctor",
    "alive": "ensemblekit.cli.alive",
    "fit": "ensemblekit.cli.fit",
}
GROUPS = {
    "build-plan": "ensemblekit.cli.build_plan",
    "bundle": "ensemblekit.cli.bundle",
    "workaround": "ensemblekit.cli.workaround",
}
_added = set[str]()


def _add_commands(words: list[str]) -> None:
    """Add the one of these that is asked for, or all: what each of them imports costs a probe more than the probe."""
    asked = next((word for word in words if not word.startswith("-")), "")
    for name in [asked] if asked in COMMANDS | GROUPS else [*COMMANDS, *GROUPS]:
        if name in _added:
            continue
        _added.add(name)
        if name in COMMANDS:
            _app.command(name)(getattr(import_module(COMMANDS[name]), name))
        else:
            _app.add_typer(import_module(GROUPS[name]).app, name=name)


def __getattr__(name: str) -> typer.Typer:
    """Return `app` with all commands, for who imports it instead of calling `main`."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _add_commands([])
    return _app


if __name__ == "__main__":
    main()
