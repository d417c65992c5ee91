# SPDX-License-Identifier: Apache-2.0
"""Measurements as the lessons show them: a bench of this machine, and records of machines that most readers lack."""

from pathlib import Path
from typing import Any

import httpx
import psutil
from IPython.display import Markdown

from ensemblekit.bench.plan import SPREAD, BenchPlan, Target
from ensemblekit.bench.report import describe, rows, without_empty
from ensemblekit.bench.results import BenchResult
from ensemblekit.bench.run import ONE_GPU, STAND_IN, run_bench
from ensemblekit.diagnose.alive import ask_alive
from ensemblekit.errors import ParameterError, UnsupportedMachine
from ensemblekit.gpu import require_gpus, visible_gpus
from ensemblekit.lesson.lesson import Lesson
from ensemblekit.lesson.show import StatusLine, as_text, table
from ensemblekit.matrix.run import MatrixResult, run_matrix
from ensemblekit.paths import repo_root
from ensemblekit.repository.stage import stage_repository
from ensemblekit.servers.nginx import find_nginx
from ensemblekit.servers.process import TritonServer
from ensemblekit.servers.ray import require_ray
from ensemblekit.settings import Settings

__all__ = [
    "bench_table",
    "gain_table",
    "gpu_table",
    "measure_alive",
    "measure_cost",
    "measure_plan",
    "measure_releases",
    "measure_spread",
    "recorded_bench",
]

ALIVE_DEADLINE_S = 3.0
WITH_VLLM: tuple[Target, ...] = ("vllm-serve", *ONE_GPU)
SPREAD_STAND_IN: tuple[Target, ...] = ("ensemble", "replicas", "servers")
SPREAD_VLLM: tuple[Target, ...] = ("ensemble", *SPREAD)
BUSY_WORDS, BUSY_WORD_S = 4, 0.005  # with which an instance is as busy as a full GPU


def measure_alive(lesson: Lesson) -> list[tuple[str, int, bool]]:
    """Ask a server whether it is ready and whether it is alive: as it is, and while a model's process stands still.

    Returns:
        Two rows: what is the matter, the HTTP status of `/v2/health/ready`, and whether the ensemble answered.

    Raises:
        ServerError: The server cannot be started.
    """
    repository = stage_repository(lesson.run_dir / "alive", source=None, device="cpu")
    server = lesson.server(repository, name="alive", flavour="base-plus-vllm")
    lesson.start(server)
    (stub,) = (one for one in psutil.Process(server.pid).children(recursive=True) if _is_stub_of("llm", one))
    rows = [("every process runs", *_ready_and_alive(server))]
    stub.suspend()
    try:
        rows.append(("the process of llm stands still", *_ready_and_alive(server)))
    finally:
        stub.resume()
        lesson.stop()
    return rows


def _is_stub_of(model: str, process: psutil.Process) -> bool:
    words = " ".join(process.cmdline())
    return "triton_python_backend_stub" in words and f"/{model}/" in words


def _ready_and_alive(server: TritonServer) -> tuple[int, bool]:
    ready = httpx.get(f"http://{server.http_url}/v2/health/ready", trust_env=False)
    return ready.status_code, ask_alive(server.http_url, deadline_s=ALIVE_DEADLINE_S).alive


def measure_cost(lesson: Lesson, *, clients: int, rounds: int, max_tokens: int) -> BenchResult:
    """Measure every way to the lesson's engine in turn, with one client and with several.

    Args:
        lesson: Says release, device and engine; with the stand-in there is no `vllm serve` to compare with.
        clients: Most clients at once.
        rounds: How often each is measured, after the warm-up.
        max_tokens: Tokens of each answer; the stand-in gives one word.

    Raises:
        ParameterError: PROVIDER is not `embedded`.
        KitError: A server did not start, or the load generator failed.
    """
    settings = _embedded(lesson)
    stand_in = settings.engine == "stand-in"
    plan = BenchPlan(
        ONE_GPU if stand_in else WITH_VLLM,
        tuple(dict.fromkeys((1, clients))),
        rounds,
        1 if stand_in else max_tokens,
        ("http whole greedy", "http streamed greedy"),
    )
    return measure_plan(lesson, plan, STAND_IN if stand_in else settings.resolved_device)


def measure_spread(lesson: Lesson, *, gpus: int, clients: int, rounds: int, max_tokens: int) -> BenchResult:
    """Measure the ensemble on one GPU, and on several: with a replica of `llm` on each, a server on each, one shared.

    Without nginx a line says that the servers are left out, without Ray that Ray is.

    Args:
        lesson: Says release, device and engine. The stand-in has processes instead of GPUs, one busy with one request
            at a time, and cannot be shared.
        gpus: How many GPUs.
        clients: Most clients at once.
        rounds: How often each is measured, after the warm-up.
        max_tokens: Tokens of each answer.

    Raises:
        ParameterError: PROVIDER is not `embedded`, or `gpus` is less than two.
        UnsupportedMachine: Fewer GPUs are visible.
        KitError: A server did not start, or the load generator failed.
    """
    settings = _embedded(lesson)
    attempted = f"spread llm over {gpus} GPUs"
    if gpus < 2:
        raise ParameterError(attempted, found="one is no spread", hint="GPUS = 2 or more")
    stand_in = settings.engine == "stand-in"
    if not stand_in:
        require_gpus(gpus, attempted)
    plan = BenchPlan(
        _possible(SPREAD_STAND_IN if stand_in else SPREAD_VLLM),
        tuple(dict.fromkeys((1, clients))) if stand_in else tuple(dict.fromkeys((16, clients))),
        rounds,
        BUSY_WORDS if stand_in else max_tokens,
    )
    device = STAND_IN if stand_in else settings.resolved_device
    return measure_plan(lesson, plan, device, gpus=gpus, stand_in_token_s=BUSY_WORD_S)


def _possible(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    for target, require in (("servers", find_nginx), ("ray", require_ray)):
        try:
            require()
        except UnsupportedMachine as error:
            if target in targets:
                print(f"Without `{target}`: {error.found}. {error.hint}.")
            targets = tuple(each for each in targets if each != target)
    return targets


def _embedded(lesson: Lesson) -> Settings:
    if lesson.settings.provider != "embedded":
        raise ParameterError(
            f"measure with PROVIDER {lesson.settings.provider!r}",
            found="the bench starts the servers that it compares",
            hint="use PROVIDER 'embedded'",
        )
    return lesson.settings


def measure_plan(lesson: Lesson, plan: BenchPlan, device: str, **how: Any) -> BenchResult:
    """Run a bench in the lesson's folder; `how` are the other arguments of `run_bench`.

    Raises:
        ParameterError: PROVIDER is not `embedded`.
        KitError: A server did not start, or the load generator failed.
    """
    _embedded(lesson)
    folder = lesson.run_dir / "bench" / lesson.name
    with StatusLine("measuring") as line:
        return run_bench(
            plan, device, lesson.settings.release, folder, lambda text, _done, _total: line.tick(text), **how
        )


def measure_releases(lesson: Lesson) -> MatrixResult:
    """Start every release in every flavour on the kit's repository, ask each once, and return how each cell ended.

    Raises:
        KitError: A wheel or the model cannot be fetched.
    """
    settings = lesson.settings
    with StatusLine("release matrix") as line:
        return run_matrix(
            providers=[settings.provider],
            engine=settings.engine,
            on_cell=lambda cell, _total: line.tick(f"{cell.release} {cell.flavour}"),
        )


def gain_table(result: BenchResult) -> Markdown:
    """Return each target's tokens/s over those of one engine, with fewest and with most clients, as a table."""
    few, many = result.plan["concurrencies"][0], result.plan["concurrencies"][-1]
    rows = [
        (target, *(f"{result.ratio(target, 'ensemble', count):.2f}" for count in (few, many)))
        for target in result.plan["targets"]
    ]
    return table(rows, ("tokens/s over one engine", f"{few} clients", f"{many} clients"))


def gpu_table() -> Markdown:
    """Return the GPUs that a server started now would see, as a table; a line that says so without any."""
    gpus = visible_gpus()
    if not gpus:
        return Markdown("No NVIDIA GPU is visible here: what follows uses processes instead.")
    found = []
    for gpu in gpus:
        holders = "; ".join(str(process) for process in gpu.processes) or "nobody that the driver names"
        found.append((gpu.index, gpu.name, f"{gpu.total_mib or 0:,}", f"{gpu.free_mib or 0:,}", gpu.driver, holders))
    return table(found, ("GPU", "name", "memory, MiB", "free, MiB", "driver", "held by"))


def bench_table(result: BenchResult, workload: str | None = None) -> Markdown:
    """Return what was measured with a workload as a Markdown table, with a line on what, and when."""
    header, *body = without_empty(rows(result, workload))
    return Markdown(f"{table(body, header).data}\n\n{as_text(describe(result, workload))}; times in ms")


def recorded_bench(name: str) -> BenchResult:
    """Return a record that is committed with the lessons, for example `2026-11-28-h200-three-loads`.

    Raises:
        ParameterError: There is no such record.
    """
    folder: Path = repo_root() / "notebooks" / "records"
    file = folder / f"{name}.json"
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
        raise ParameterError(f"read the record {name!r}", found="no such file", hint=f"choose from {names}")
    return BenchResult.load(file)
