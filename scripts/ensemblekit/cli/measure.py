# SPDX-License-Identifier: Apache-2.0
"""What measures servers: `ensemblekit matrix` over the releases, `ensemblekit bench` of one of them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemblekit.cli.options import (
    COUNT,
    EXIT_FAILED,
    FOLDER,
    WORD,
    container_engine,
    progress_bars,
    release,
    say,
)
from ensemblekit.errors import ParameterError
from ensemblekit.paths import RUN_DIR_VARIABLE, current_run_dir, new_run_id, runs_dir

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

    from ensemblekit.bench.results import BenchResult
    from ensemblekit.bench.run import Progress
    from ensemblekit.matrix.run import Cell, MatrixResult

__all__ = ["bench", "matrix"]

STYLE = {"as expected": "green", "UNEXPECTED": "bold red", "not run": "yellow"}
TARGET_HELP = (
    "engine, vllm-serve, llm, ensemble, bls; chat, the ensemble of OpenAI's API, which has no postprocess, and openai, "
    "the same through its gateway; with --gpus also replicas, servers (behind one address), "
    "tensor-parallel, ray (the same over nodes of Ray), and ray-serve (vLLM behind Ray Serve). May be given again."
)
MODEL_HELP = (
    "The pinned model, or the folder of a checkpoint; without weights, of config and tokenizer alone, they are random."
)
LOAD_HELP = (
    "Kind of request: http or grpc, whole or streamed, greedy or sampled, and varied for answers of different length, "
    "for example 'grpc streamed greedy varied'; or all. May be given again. Default: 'http whole greedy'."
)


@click.command()
@click.option("--release", "releases", type=WORD, multiple=True, help="A release; may be given again. Default: all.")
@click.option("--flavour", "flavours", type=WORD, multiple=True, help="A flavour; may be given again. Default: all.")
@click.option(
    "--provider", "providers", type=WORD, multiple=True, default=["embedded", "container"], help="May be given again."
)
@click.option("--engine", type=WORD, default="stand-in", help="stand-in: seconds a cell; vllm: a minute a cell.")
@container_engine
@click.pass_context
def matrix(
    context: click.Context,
    releases: tuple[str, ...],
    flavours: tuple[str, ...],
    providers: tuple[str, ...],
    engine: str,
    container_engine: str | None,
) -> None:
    """Run every release and flavour and compare with the release table; exit code 1 if one is unexpected."""
    from rich.console import Console

    from ensemblekit.matrix.picture import plot_matrix
    from ensemblekit.matrix.run import run_matrix
    from ensemblekit.servers.container_engine import choose_engine

    choose_engine(container_engine)
    os.environ.setdefault(RUN_DIR_VARIABLE, str(runs_dir() / new_run_id("matrix")))
    console = Console()
    with progress_bars(console) as bar:
        task = bar.add_task("release matrix", total=None)

        def on_cell(cell: "Cell", total: int) -> None:
            bar.update(task, total=total, advance=1, description=f"{cell.release} {cell.flavour}: {cell.state}")

        result = run_matrix(releases=releases, flavours=flavours, providers=providers, engine=engine, on_cell=on_cell)
    _show_matrix(console, result)
    picture = current_run_dir() / "matrix.png"
    plot_matrix(result).savefig(picture, dpi=150)
    say(console, f"  {current_run_dir() / 'matrix.json'}", f"  {picture}")
    context.exit(0 if result.ran and not result.unexpected else EXIT_FAILED)


def _show_matrix(console: "Console", result: "MatrixResult") -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("release", "flavour", "provider", "ensemble", "s", "verdict"):
        table.add_column(name, no_wrap=True, justify="right" if name == "s" else "left")
    for cell in result.cells:
        seconds = f"{cell.seconds:.1f}" if cell.state != "not run" else ""
        verdict = f"[{STYLE[cell.verdict]}]{cell.verdict}"
        table.add_row(cell.release, cell.flavour, cell.provider, cell.state, seconds, verdict)
    console.print(table)
    others = [cell for cell in result.cells if cell.state != "answered"]
    say(console, *dict.fromkeys(f"  {cell.state} ({cell.provider}): {cell.detail}" for cell in others))
    say(console, f"  {len(result.ran)} of {len(result.cells)} cells run, {result.seconds:.0f} s")


@click.command()
@click.option("--target", type=WORD, multiple=True, help=TARGET_HELP)
@click.option(
    "--clients", type=COUNT, multiple=True, default=[1, 16, 64, 256], help="Clients at once; may be repeated."
)
@click.option("--load", type=WORD, multiple=True, help=LOAD_HELP)
@click.option("--rounds", type=COUNT, default=4, help="Rounds after the warm-up.")
@click.option("--max-tokens", type=COUNT, help="Tokens of each answer. Default: 128, of the stand-in 1 word.")
@click.option("--requests", type=COUNT, default=4, help="Requests of each client in a round.")
@click.option("--gpus", type=COUNT, default=1, help="GPUs for replicas, servers and tensor-parallel.")
@click.option(
    "--cross-check", type=click.IntRange(0), default=0, help="Clients with which perf_analyzer measures too; 0: not."
)
@click.option("--device", type=WORD, default="auto", help="auto, cpu, cuda, or stand-in: Python in vLLM's place.")
@click.option("--model", type=WORD, help=MODEL_HELP)
@release
@click.option("--out", type=FOLDER, help="Folder of the record; by default one under runs/.")
def bench(
    target: tuple[str, ...],
    clients: tuple[int, ...],
    load: tuple[str, ...],
    rounds: int,
    max_tokens: int | None,
    requests: int,
    gpus: int,
    cross_check: int,
    device: str,
    model: str | None,
    release: str,
    out: Path | None,
) -> None:
    """Measure the ensemble, BLS, `llm` alone, `vllm serve` and the engine in the same run, in turn."""
    from rich.console import Console

    from ensemblekit.assets.weights import PINNED_MODEL
    from ensemblekit.bench.plan import BenchPlan, check_targets, check_workloads
    from ensemblekit.bench.report import cross_check_text, plot_bench
    from ensemblekit.bench.run import ONE_GPU, RECORD, STAND_IN, run_bench
    from ensemblekit.settings import check_settings

    stand_in = device == STAND_IN
    settings = check_settings(RELEASE=release, DEVICE="cpu" if stand_in else device)
    targets = check_targets(target or (ONE_GPU if stand_in else ()))
    if cross_check and "ensemble" not in targets:
        raise ParameterError("cross-check the ensemble", found="no target ensemble", hint="add --target ensemble")
    tokens = max_tokens or (1 if stand_in else 128)
    plan = BenchPlan(targets, clients, rounds, tokens, check_workloads(load), requests)
    engine = STAND_IN if stand_in else settings.resolved_device
    folder = (out or runs_dir() / new_run_id("bench")).resolve()

    console = Console(stderr=True)
    with progress_bars(console) as bars:
        show = _progress(console, bars)
        more: dict[str, Any] = {"gpus": gpus, "cross_check": cross_check, "model": model or PINNED_MODEL}
        result = run_bench(plan, engine, release, folder, show, **more)
    picture = folder / "bench.png"
    plot_bench(result).savefig(picture, dpi=110)
    for name in result.workloads:
        _show_bench(result, name)
    if result.cross_check:
        click.echo(cross_check_text(result))
    say(console, f"Record: {folder / RECORD}", f"Picture: {picture}")


def _progress(console: "Console", bars: "Bars") -> "Progress":
    """Return what moves the bar; without a terminal, it prints what begins, round by round."""
    task = bars.add_task("starting", total=None)
    last = ""

    def show(text: str, done: int, total: int) -> None:
        nonlocal last
        bars.update(task, description=text, completed=done, total=total or None)
        line = text if not total else f"{100 * done // total // 10 * 10} % measured"
        if not console.is_terminal and line != last:
            last = line
            console.print(line, highlight=False)

    return show


def _show_bench(result: "BenchResult", workload: str) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from ensemblekit.bench.report import describe, rows, without_empty

    header, *body = without_empty(rows(result, workload))
    table = Table(box=SIMPLE, caption=describe(result, workload), padding=(0, 1, 0, 0))
    for name in header:
        table.add_column(name, justify="left" if name == "target" else "right", no_wrap=True)
    for row in body:
        table.add_row(*row)
    Console().print(table)
