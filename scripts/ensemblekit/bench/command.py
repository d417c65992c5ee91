# SPDX-License-Identifier: Apache-2.0
"""`ensemblekit bench`: from the command line to a record, a table and a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ensemblekit.errors import ParameterError

if TYPE_CHECKING:
    from ensemblekit.bench.run import BenchResult

__all__ = ["bench"]


def bench(
    target: Annotated[list[str] | None, typer.Option(help="vllm-serve, llm or ensemble. Default: all.")] = None,
    clients: Annotated[list[int] | None, typer.Option(help="Clients at once. Default: 1, 16, 64 and 256.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds after the warm-up.", min=1)] = 4,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer.", min=1)] = 128,
    streaming: Annotated[bool, typer.Option("--streaming", help="Answers come in pieces.")] = False,
    grpc: Annotated[bool, typer.Option("--grpc", help="Ask Triton over gRPC instead of HTTP.")] = False,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    release: Annotated[str, typer.Option(help="Which Triton.")] = "24.08",
    offline: Annotated[bool, typer.Option(help="Measure the engine alone too.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder of the record; by default one under runs/.")] = None,
) -> None:
    """Measure the ensemble, `llm` alone and `vllm serve` in the same run, in turn."""
    from ensemblekit.bench.plan import BenchPlan, check_targets
    from ensemblekit.bench.report import save_picture
    from ensemblekit.bench.run import run_bench
    from ensemblekit.lesson.settings import check_settings
    from ensemblekit.paths import new_run_id, runs_dir

    settings = check_settings(RELEASE=release, DEVICE=device)
    concurrencies = tuple(clients or (1, 16, 64, 256))
    if min(concurrencies) < 1:
        raise ParameterError(f"measure with {min(concurrencies)} clients", found="not one", hint="--clients 16")
    plan = BenchPlan(
        check_targets(target or ()),
        concurrencies,
        rounds,
        max_tokens,
        streaming,
        "grpc" if grpc else "http",
        temperature,
    )
    folder = (out or runs_dir() / new_run_id("bench")).resolve()
    console = Console(stderr=True)
    with console.status("starting") as status:
        last = ""

        def say(text: str) -> None:
            nonlocal last
            status.update(text)
            if not console.is_terminal and text.split(" ")[0] != last:
                last = text.split(" ")[0]
                console.print(text, highlight=False)

        result = run_bench(plan, settings.resolved_device, release, folder, say, offline=offline)
    record, picture = result.save(folder / "bench.json"), save_picture(result, folder / "bench.png")
    _show(result)
    console.print(f"Record: {record}\nPicture: {picture}", highlight=False, soft_wrap=True)


def _show(result: "BenchResult") -> None:
    from ensemblekit.bench.report import HEADER, describe, rows

    table = Table(box=SIMPLE, caption=describe(result), padding=(0, 1, 0, 0))
    for name in HEADER:
        table.add_column(name, justify="left" if name == "target" else "right", no_wrap=True)
    for row in rows(result):
        table.add_row(*row)
    console = Console(width=None)
    console.print(table)
    if result.offline:
        console.print(f"The engine alone: {sorted(result.offline)[len(result.offline) // 2]:.0f} tokens/s")
