# SPDX-License-Identifier: Apache-2.0
"""Stage a copy of the model repository under a run's folder, with that run's overrides.

`model_repo/` itself is never edited: it is what NVIDIA's images would serve.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemblekit.assets.weights import ModelSource
from ensemblekit.errors import RepositoryError, UnsupportedMachine
from ensemblekit.gpu import Gpu, require_gpus, visible_gpus
from ensemblekit.paths import cache_dir, repo_root
from ensemblekit.repository.config import place_on_gpus, set_parameter, write_config
from ensemblekit.repository.gpu_memory import gpus_per_engine, memory_fraction, model_need, require_divisible_heads
from ensemblekit.repository.read import CONFIG_NAME, read_bytes, read_config
from ensemblekit.repository.retrieval import add_retrieval

__all__ = ["ENGINE_ARGUMENTS", "ENGINE_ENVIRONMENT", "StagedRepository", "engine_environment", "stage_repository"]

COMPOSING_ENGINE, ENSEMBLE, BLS, CHAT = "llm", "ensemble", "bls", "chat"
FRACTION = "gpu_memory_utilization"
CORES_PER_PREPROCESS, MOST_PREPROCESS = 4, 4  # beside a GPU: one process prepares about 3000 requests a second
# What vLLM is started with. `float32` on the CPU: in bfloat16, processors with AMX round otherwise than those without,
# and the pinned model's first token is a close call (0.1 nat), so that the same question got another greedy answer.
# `enforce_eager` there: compiling would cost minutes and gain nothing at this size. 2048 tokens of context bound the
# memory; half of a GPU leaves room for a second engine beside it. Of a GPU `stage_repository` takes less than that
# where less is free (see gpu_memory.py).
ENGINE_ARGUMENTS: dict[str, dict[str, Any]] = {
    "cpu": {"dtype": "float32", "enforce_eager": True, "max_model_len": 2048, "max_num_seqs": 32, "seed": 0},
    "cuda": {"dtype": "bfloat16", "gpu_memory_utilization": 0.5, "max_model_len": 2048, "seed": 0},
}
# On the CPU, V1_MULTIPROCESSING=0 lets the engine's process compute by itself (vllm/platforms/cpu.py). vLLM's own way
# is a second process, which it pins to cores: on two cores a start took 15 to 20 s longer with it, and tokens came more
# slowly. Not measured on many cores. Threads that wait must then sleep: beside other work, spinning ones made it four
# times as slow.
ENGINE_ENVIRONMENT: dict[str, dict[str, str]] = {
    "cpu": {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
    },
    "cuda": {"VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1"},
}


@dataclass(frozen=True)
class StagedRepository:
    """A model repository that a server of this run may read."""

    path: Path  # the folder, one model a folder
    environment: dict[str, str]  # variables that its models need in the server's environment

    @property
    def models(self) -> tuple[str, ...]:
        """The models of the repository, by name."""
        return tuple(sorted(child.name for child in self.path.iterdir() if child.is_dir()))

    def tree(self) -> str:
        """Return the files as a tree of text.

        Raises:
            OSError: The folder cannot be read.
        """
        rows = [f"{self.path.name}/"]
        for file in sorted(self.path.rglob("*")):
            if "__pycache__" not in file.parts:
                depth = len(file.relative_to(self.path).parts)
                rows.append(f"{'    ' * depth}{file.name}{'/' if file.is_dir() else ''}")
        return "\n".join(rows)

    def add_variant(self, model: str, name: str, **fields: str) -> str:
        """Add a copy of a model under another name, with fields of its config changed, and return the name.

        Args:
            model: The model to copy.
            name: The copy's name.
            **fields: String fields of the config; an empty value clears the field.

        Raises:
            RepositoryError: The model's config cannot be read.
        """
        config = read_config(self.path / model)
        for field, value in {"name": name, **fields}.items():
            config.ClearField(field)
            if value:
                setattr(config, field, value)
        shutil.copytree(self.path / model, self.path / name, dirs_exist_ok=True)
        write_config(config, self.path / name / "config.pbtxt")
        return name

    def config_text(self, model: str) -> str:
        """Return a model's config.pbtxt as it stands.

        Raises:
            OSError: The model has none.
        """
        return read_bytes(self.path / model / CONFIG_NAME).decode()


def stage_repository(
    target: Path,
    *,
    source: ModelSource | None,
    device: str,
    original: Path | None = None,
    engine_arguments: dict[str, Any] | None = None,
    tensor_parallel: int = 1,
    replicas: int = 1,
    servers: int = 1,
    bls: bool = False,
    openai: bool = False,
    retrieval: bool = False,
    stand_in_token_s: float = 0.0,
) -> StagedRepository:
    """Copy the model repository to `target` and fill in this run's model and device.

    Args:
        target: The new folder; an old one there is replaced.
        source: The model for vLLM; None stages the Python stand-in instead of the vLLM model.
        device: `cpu` or `cuda`.
        original: The repository to copy, by default the kit's own `model_repo/`.
        engine_arguments: Added to, and winning over, the defaults for the device and what the others here say.
        tensor_parallel: Over how many GPUs one engine is spread.
        replicas: How many engines answer, each on a GPU of its own; of the stand-in, how many processes.
        servers: How many servers serve it, each on a GPU of its own.
        stand_in_token_s: How long the stand-in takes for a word, in seconds.
        bls: Whether the kit's own repository is staged with the BLS form of its pipeline; the lessons about the
            ensemble serve the models that the report had.
        openai: Whether the ensemble that OpenAI's API needs is staged beside the other.
        retrieval: Whether the retrieval pipeline is staged in place of the plain one.

    Raises:
        RepositoryError: The repository is not there or has no model in it, replicas of several GPUs each are
            asked for, or the model's heads cannot be shared by as many GPUs.
        UnsupportedMachine: More GPUs are asked for than are visible.
        OutOfGpuMemory: Less memory of a GPU is free than the model needs.
    """
    _require_vllm_on_cuda(source, device, tensor_parallel, replicas)
    own = original is None
    _copy_models(original, target, bls=bls, openai=openai, retrieval=retrieval)
    if not (target / COMPOSING_ENGINE).is_dir():
        return StagedRepository(target, {})
    if source is None:
        _stand_in(target / COMPOSING_ENGINE, replicas, stand_in_token_s)
        return StagedRepository(target, {})
    given = ({"tensor_parallel_size": tensor_parallel} if tensor_parallel > 1 else {}) | (engine_arguments or {})
    arguments = ENGINE_ARGUMENTS[device] | given
    if device == "cuda":
        require_divisible_heads(Path(source.engine_model), arguments)
        gpus = _place(target / COMPOSING_ENGINE, gpus_per_engine(arguments), replicas)
        gpus = gpus if servers == 1 else visible_gpus()[:servers]
        arguments |= _fitting(gpus, source, arguments, given)
    _fill_engine(target / COMPOSING_ENGINE, source, arguments)
    _fill_tokenizer(target / "preprocess", source, _preprocess_instances() if own and device == "cuda" else 0)
    return StagedRepository(target, engine_environment(device, offline=source.local))


def _copy_models(original: Path | None, target: Path, *, bls: bool, openai: bool, retrieval: bool) -> None:
    left_out = (BLS,) if original is None and (retrieval or not bls) else ()
    original = original or repo_root() / "model_repo"
    if not original.is_dir() or not any(original.glob("*/config.pbtxt")):
        raise RepositoryError(
            f"stage the model repository {original}",
            found="no folder with a config.pbtxt in it" if original.is_dir() else "no such folder",
            hint="give the folder that holds one folder per model, each with its config.pbtxt",
        )
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(original, target, ignore=shutil.ignore_patterns("__pycache__", *left_out))
    if not (target / COMPOSING_ENGINE).is_dir():
        return
    if openai:
        shutil.copytree(repo_root() / "env" / "openai" / CHAT, target / CHAT)
    if retrieval:
        shutil.rmtree(target / ENSEMBLE)
        add_retrieval(target, bls=bls)


def engine_environment(device: str, *, offline: bool = False) -> dict[str, str]:
    """Return the variables that a vLLM engine on a device is started with; what the user has set stays as it is.

    vLLM keeps what it has compiled under `VLLM_CACHE_ROOT`: here it outlives the run, in the kit's own cache.

    Args:
        device: `cpu` or `cuda`.
        offline: Whether the model is a folder, so that the hub need not be asked.

    Raises:
        OSError: The cache folder cannot be made.
    """
    more = ENGINE_ENVIRONMENT[device] | {"VLLM_CACHE_ROOT": str(cache_dir() / "vllm")}
    if device == "cuda":  # CUDA's own order may differ from that of nvidia-smi, which says what is free where
        more["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    usual = {name: os.environ.get(name, value) for name, value in more.items()}
    return usual | ({"HF_HUB_OFFLINE": "1"} if offline else {})


def _require_vllm_on_cuda(source: ModelSource | None, device: str, tensor_parallel: int, replicas: int) -> None:
    stand_in, count = source is None, tensor_parallel * replicas
    if tensor_parallel > 1 if stand_in else count > 1 and device != "cuda":
        raise UnsupportedMachine(
            f"stage the model for {count} GPUs",
            found="a Python stand-in instead of vLLM" if stand_in else f"device {device}",
            hint="use ENGINE 'vllm' and DEVICE 'cuda', on a machine with that many GPUs",
        )


def _place(model: Path, each: int, replicas: int) -> tuple[Gpu, ...]:
    """Write into a model's config which GPUs its engines run on, and return those GPUs.

    One engine on one GPU stays as the repository has it.
    """
    if each > 1 and replicas > 1:
        raise RepositoryError(
            f"stage {replicas} replicas of {each} GPUs each",
            found="an instance of Triton stands on one GPU, or on all that the server sees",
            hint="start one server for each replica, with CUDA_VISIBLE_DEVICES naming its GPUs",
        )
    count = each * replicas
    if count == 1:
        return visible_gpus()[:1]
    gpus = require_gpus(count, f"stage the model for {count} GPUs")
    config = read_config(model)
    place_on_gpus(config, replicas)
    write_config(config, model / "config.pbtxt")
    return gpus


def _fitting(
    gpus: tuple[Gpu, ...], source: ModelSource, arguments: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """Return the engine arguments that depend on what the GPUs are and have free, except those that were given."""
    fitting: dict[str, Any] = {} if all(gpu.knows_bfloat16 for gpu in gpus) else {"dtype": "float16"}
    if FRACTION not in given:  # its errors are not for a user who has chosen
        fitting[FRACTION] = memory_fraction(gpus, model_need(Path(source.engine_model), arguments))
    return fitting | given


def _stand_in(model: Path, replicas: int, token_s: float) -> None:
    shutil.rmtree(model)
    shutil.copytree(repo_root() / "env" / "stand_in_llm", model, ignore=shutil.ignore_patterns("__pycache__"))
    if replicas > 1 or token_s:
        config = read_config(model)
        config.instance_group[0].count = replicas
        set_parameter(config, "seconds_per_token", str(token_s))
        write_config(config, model / "config.pbtxt")


def _fill_engine(model: Path, source: ModelSource, arguments: dict[str, Any]) -> None:
    for file in model.glob("*/model.json"):
        merged = (
            json.loads(file.read_text()) | arguments | {"model": source.engine_model, "tokenizer": source.tokenizer}
        )
        file.write_text(json.dumps(merged, indent=4) + "\n")


def _fill_tokenizer(model: Path, source: ModelSource, instances: int) -> None:
    """Write the tokenizer into the config of `preprocess`, and how many processes it has; 0 leaves their number."""
    if (model / "config.pbtxt").is_file():
        config = read_config(model)
        set_parameter(config, "tokenizer", source.tokenizer)
        for group in config.instance_group:
            group.count = instances or group.count
        write_config(config, model / "config.pbtxt")


def _preprocess_instances() -> int:
    """Return how many processes prepare requests for an engine on a GPU; each imports transformers, so few cores: one.

    Only `preprocess` can have several: the pieces of one stream must pass `postprocess` in their order.
    """
    return max(1, min(MOST_PREPROCESS, len(os.sched_getaffinity(0)) // CORES_PER_PREPROCESS))
