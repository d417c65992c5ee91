# SPDX-License-Identifier: Apache-2.0
"""Faults of the machine and of the start, which no repository shows, and what is noise; the others are the catalogue's.

Codes S4xx. Words were measured on 24.08 where a machine without a GPU can show them, else taken from upstream's issues.
"""

import re
from functools import lru_cache

from ensemblekit.faults import links
from ensemblekit.faults.catalogue import fault, fault_in
from ensemblekit.faults.fault import Fault

__all__ = ["DEPENDS", "GENERIC", "HARMLESS", "SERVER_FAULTS", "known_fault", "may_be_known"]

ISSUES = "https://github.com/triton-inference-server/server/issues"


def _start(code: str, title: str, pattern: str, *, cause: str, fix: str, link: str = links.SERVER_OPTIONS) -> Fault:
    return Fault(code, title, "error", "load", "", pattern, None, cause, fix, link)


SERVER_FAULTS = (
    _start(
        "S401",
        "the GPU's memory is used up",
        r"CUDA out of memory|CUDA error: out of memory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
        r"|OutOfMemoryError",
        cause="The model asked for more memory than the GPU has free; other models and other processes count too.",
        fix="Look at `nvidia-smi`. For vLLM lower gpu_memory_utilization or max_model_len in model.json; for several "
        "engines let the shares add up to less than 1.",
        link=links.VLLM_BACKEND,
    ),
    _start(
        "S402",
        "a shared library is missing",
        r"(?P<program>\S+): error while loading shared libraries: (?P<library>[^:\s]+)",
        cause="The dynamic linker could not start the program. If it is a Python model's stub, Triton waits for it "
        "without limit.",
        fix="Install the package that holds the library, or name its folder in LD_LIBRARY_PATH.",
        link=links.PYTHON_BACKEND,
    ),
    _start(
        "S403",
        "a port is in use",
        r"failed to start (?P<service>\w+) service: .*?Socket '(?P<address>[^']*)' already in use"
        r"|Socket '(?P<socket>[^']*)' already in use",
        cause="Another process listens there, often an older tritonserver. A line `Started ... at` may stand before "
        "it: Triton prints that before it knows.",
        fix="Find it (`ss -ltnp`), stop it, or start with other --http-port, --grpc-port and --metrics-port.",
    ),
    _start(
        "S404",
        "shared memory is too small",
        r"(?:[Ss]hared memory|shm|/dev/shm|boost::interprocess).*No space left on device"
        r"|[Uu]nable to initialize shared memory key|[Ff]ailed to (?:increase|initialize) the shared memory pool"
        r"|No space left on device.*(?:shm|shared memory)|\bBus error\b",
        cause="Python models and their tensors live in /dev/shm; a container has 64 MB of it unless told otherwise.",
        fix="Start the container with `--shm-size=1g` (Kubernetes: an emptyDir with medium Memory on /dev/shm).",
        link=links.PYTHON_BACKEND,
    ),
    _start(
        "S405",
        "the model repository is not there",
        r"creating server: Internal - failed to stat file (?P<path>\S+)|--model-repository must be specified",
        cause="The path does not exist where the server runs; in a container that is the path inside.",
        fix="Check --model-repository, and that the folder is mounted: `--volume /your/models:/models`.",
        link=links.REPOSITORY,
    ),
    _start(
        "S406",
        "a backend of another Triton version",
        r"TRITONBACKEND API version[^\"]*(?:does not support|is not compatible)|triton backend API version does not "
        r"support this backend|Serialized Engine Version: \d+|Current Version: \d+, Serialized",
        cause="A backend or a compiled engine was made for another release than this server.",
        fix="Use the backend's branch of the server's release (for example r24.08), or compile the engine anew.",
        link=links.PYTHON_BACKEND,
    ),
    _start(
        "S407",
        "a Python package is missing",
        r"ModuleNotFoundError: No module named '(?P<module>[^']+)'",
        cause="The model imports a package that the Python of the server's stub does not have; that is the first "
        "python3 on the server's PATH, not the one of your shell.",
        fix="Install it in that Python, or give the model an environment of its own (EXECUTION_ENV_PATH).",
        link=links.PYTHON_BACKEND,
    ),
    _start(
        "S408",
        "a package has another version than the code expects",
        r"ImportError: cannot import name '(?P<name>[^']+)' from '(?P<module>[^']+)'"
        r"|AttributeError: module '(?P<other>[^']+)' has no attribute|undefined symbol: (?P<symbol>\S+)"
        r"|was removed in the NumPy 2\.0 release",
        cause="The code was written, or compiled, for another version of that package.",
        fix="Install the versions that belong together; for the vLLM backend its release's vLLM.",
        link=links.VLLM_BACKEND,
    ),
    _start(
        "S409",
        "a Python model's process died",
        r"Stub process '(?P<instance>[^']*)' is not healthy",
        cause="It ended without a Python exception: os._exit, a crash in native code, or the kernel's out-of-memory "
        "killer.",
        fix="Look at what it printed before, at `dmesg | tail`, and at the memory limit of the container.",
        link=links.PYTHON_BACKEND,
    ),
    _start(
        "S410",
        "a Python model took too long to start",
        r"[Tt]imed out occurred while waiting for the stub process",
        cause="The stub did not report within stub-timeout-seconds, 30 by default: slow imports, a slow disk.",
        fix="Start with `--backend-config=python,stub-timeout-seconds=120`.",
        link=links.PYTHON_BACKEND,
    ),
    _start(
        "S411",
        "the server crashed",
        r"^Signal \((?P<signal>4|6|7|8|11)\) received|Segmentation fault",
        cause="The server's process was ended by a fault in native code, its own or a backend's.",
        fix="The stack below it names the library; the newest release may have the repair.",
        link=ISSUES,
    ),
    _start(
        "S412",
        "the weights cannot be fetched",
        r"LocalEntryNotFoundError|couldn't connect to 'https://huggingface\.co'|Max retries exceeded with url: /"
        r"|is not a local folder and is not a valid model identifier|GatedRepoError|401 Client Error",
        cause="model.json names a model of a hub, and the server cannot reach it, or may not.",
        fix="Name a local folder that is mounted into the container, or give it the network and HF_TOKEN.",
        link=links.VLLM_BACKEND,
    ),
    _start(
        "S413",
        "an option that this server does not know",
        r"unrecognized option '(?P<option>[^']*)'",
        cause="The option belongs to another release, or to a part that this build was made without.",
        fix="`tritonserver --help` lists the options of this build.",
    ),
    _start(
        "S414",
        "the server was killed",
        r"^Killed$|OOMKilled|exit(?:ed with)? code:? 137\b|Out of memory: Killed process",
        cause="The kernel or the container engine ended it, most often for want of memory.",
        fix="Raise the memory limit, or load fewer models; `dmesg | tail` says what was killed.",
        link=ISSUES,
    ),
    _start(
        "S415",
        "a compiled package wants another numpy",
        r"A module that was compiled using NumPy 1\.x cannot be run in NumPy 2",
        cause="numpy 2 is installed beside packages that were compiled for numpy 1.",
        fix="Install `numpy<2` (1.26.4) in the Python that the models run in.",
        link=links.PYTHON_BACKEND,
    ),
    _start(
        "S416",
        "the driver is too old for this image",
        r"forward compatibility was attempted|unsupported display driver|The NVIDIA driver on your system is too old",
        cause="The CUDA of the image needs a newer driver than the host has.",
        fix="Update the driver, or take an older image; NVIDIA's support matrix names the pairs.",
        link=ISSUES,
    ),
    _start(
        "S417",
        "vLLM has too little memory for one request of full length",
        r"max seq len \((?P<length>\d+)\).{0,40}KV cache is needed, which is larger than the available",
        cause="What is left for the cache of keys and values does not hold max_model_len tokens.",
        fix="In model.json lower max_model_len, or raise gpu_memory_utilization (CPU: VLLM_CPU_KVCACHE_SPACE).",
        link=links.VLLM_BACKEND,
    ),
    _start(
        "S418",
        "a GPU that is not there",
        r"invalid or unsupported gpu id (?P<gpu>\d+)|No CUDA GPUs are available|Found no NVIDIA driver on your system"
        r"|no CUDA-capable device is detected|Failed to infer device type",
        cause="The config or the engine asks for a GPU, and this server sees none, or not that one.",
        fix="`nvidia-smi` must list it where the server runs (`docker run --gpus all`); CUDA_VISIBLE_DEVICES must not "
        "hide it.",
    ),
    _start(
        "S419",
        "the GPU is held by another process alone",
        r"CUDA-capable device\(s\) is/are busy or unavailable",
        cause="The GPU is in exclusive mode and somebody uses it.",
        fix="Stop that process (`nvidia-smi` names it), or `nvidia-smi --compute-mode=DEFAULT`.",
    ),
)
DEPENDS = fault("E209")
GENERIC = "E216"  # "a Python model's code failed": true of most S4xx as well, which say more
# Lines of level E, or that look so, which say nothing about a failure.
HARMLESS = (
    re.compile(r"^CudaDriverHelper has not been initialized"),  # a machine without a GPU
    re.compile(r"^unable to create stream for \S+: CUDA driver version is insufficient"),  # the same
    re.compile(r"^Failed to set config modification time: model_config_content_name_ is empty"),  # a config by request
    re.compile(r"^failed to poll model '[^']*': model not found in any model repository"),  # said again with its reason
)
# one of these stands in every line, printed by whatever program, that could say one of the faults
_SIGNS = ("rror", "emory", "ailed", "No space", "Killed", "137", "np.string_", "NumPy", "Signal", "unrecognized",
          "healthy", "fault", "driver", "Serialized", "Unable", "must be specified", "undefined symbol")  # fmt: skip


_COMPILED = tuple((entry, re.compile(entry.pattern, re.MULTILINE)) for entry in SERVER_FAULTS)
_DIGITS = re.compile(r"\d+")
NUMBERS_THAT_SPEAK = ("137", "401", "Signal (")  # an exit code, a status, a signal: words of a fault
SHAPES = 4096
_unknown_shapes: set[str] = set()


def known_fault(text: str) -> tuple[Fault, dict[str, str]] | None:
    """Return the fault that a message speaks of, with the values in it; None if its words are unknown.

    Words that were unknown once are not looked up again when only their numbers differ: logs repeat themselves.
    """
    shape = text if any(number in text for number in NUMBERS_THAT_SPEAK) else _DIGITS.sub("#", text)
    if shape in _unknown_shapes:
        return None
    found = _look_up(text)
    if found is None:
        if len(_unknown_shapes) >= SHAPES:
            _unknown_shapes.clear()
        _unknown_shapes.add(shape)
    return found


@lru_cache(maxsize=2048)
def _look_up(text: str) -> tuple[Fault, dict[str, str]] | None:
    found = fault_in(text)
    if found is None or found[0].code == GENERIC:
        for entry, expression in _COMPILED:
            if match := expression.search(text):
                return entry, _values(match)
    return (found[0], _values(found[1])) if found else None


def _values(match: re.Match[str]) -> dict[str, str]:
    return {name: value for name, value in match.groupdict().items() if value is not None}


def may_be_known(text: str) -> bool:
    """Return whether a printed line may say a fault: a quick look, for logs of any size."""
    return any(sign in text for sign in _SIGNS)
