# SPDX-License-Identifier: Apache-2.0
"""Why an engine did not start on a GPU, from the words of Triton, vLLM and torch in the server's log.

vLLM's words are those of 0.25 to 0.32, torch's those of 2.11. The first rule that matches wins, so causes come
before their consequences.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ensemblekit.gpu import MIN_DRIVER, visible_gpus

__all__ = ["Reason", "reason_of"]

FREE_SOME = "stop what holds the memory, or choose another GPU with CUDA_VISIBLE_DEVICES"
ONE_AT_A_TIME = "load engines of one GPU one after the other (ServerOptions(one_at_a_time=True))"
OTHER_DEVICE = "use DEVICE 'cpu', or make a GPU visible: `nvidia-smi` must list it, CUDA_VISIBLE_DEVICES not hide it"
SIZE = r"[\d.]+ [KMG]?i?[Bb](?:ytes)?"


@dataclass(frozen=True)
class Reason:
    """What was found in a log, and what to do about it."""

    found: str
    hint: str


Match = re.Match[str]


def reason_of(text: str) -> Reason | None:
    """Return why an engine did not start on a GPU, None if the log does not say that this was it.

    Args:
        text: The server's log.

    >>> reason_of("RuntimeError: No CUDA GPUs are available").found
    "no GPU that vLLM can use ('No CUDA GPUs are available')"
    """
    for pattern, explain in _RULES:
        if match := pattern.search(text):
            return explain(match, text)
    return None


def _old_driver(match: Match, _text: str) -> Reason:
    cuda = int(match[1])  # 12020 is CUDA 12.2
    found = (
        f"NVIDIA's driver is too old: it knows CUDA {cuda // 1000}.{cuda % 1000 // 10}, the locked torch has CUDA 13"
    )
    return Reason(found, f"update the driver to {MIN_DRIVER} or newer, or use DEVICE 'cpu'")


def _no_gpu(match: Match, _text: str) -> Reason:
    return Reason(f"no GPU that vLLM can use ({match[0]!r})", OTHER_DEVICE)


def _no_such_gpu(match: Match, _text: str) -> Reason:
    usable = match[2].strip() or "none"
    return Reason(f"the config asks for GPU {match[1]}, Triton can use: {usable}", OTHER_DEVICE)


def _busy(match: Match, _text: str) -> Reason:
    hint = "stop that process (`nvidia-smi` names it), or let the GPU be shared: `nvidia-smi --compute-mode=DEFAULT`"
    return Reason(f"the GPU is held by another process alone ({match[0]!r}){_holders()}", hint)


def _less_free_than_asked(match: Match, _text: str) -> Reason:
    device, free, total, fraction, asked = match.groups()
    most = int(100 * float(free) / float(total)) / 100
    found = f"out of GPU memory: {free} of {total} GiB were free on {device or 'the GPU'}, {asked} GiB were asked for "
    found += f"(gpu_memory_utilization {fraction}){_holders()}"
    return Reason(found, f"{FREE_SOME}, or set the engine argument gpu_memory_utilization to at most {most:g}")


def _allocation(match: Match, _text: str) -> Reason:
    asked, gpu, total, free = match[1], match[2], match[3], match[4]
    held = "".join(f"; process {pid} held {size}" for pid, size in re.findall(rf"Process (\d+) has ({SIZE})", match[5]))
    found = f"out of GPU memory: {free} of {total} were free on GPU {gpu}, {asked} more were asked for"
    hint = f"{FREE_SOME}, or lower max_model_len, max_num_seqs or the model's size"
    return Reason(f"{found}{held or _holders()}", hint)


def _no_context(match: Match, _text: str) -> Reason:
    return Reason(f"out of GPU memory before vLLM could measure what is free ({match[0]!r}){_holders()}", FREE_SOME)


def _no_room_for_cache(_match: Match, text: str) -> Reason:
    left = re.findall(r"Available KV cache memory: (-?[\d.]+) GiB", text)
    found = "out of GPU memory: gpu_memory_utilization leaves "
    found += f"{left[-1]} GiB for the cache of keys and values" if left else "nothing for the cache of keys and values"
    return Reason(found + _holders(), f"{ONE_AT_A_TIME}; alone on the GPU, raise gpu_memory_utilization")


def _cache_too_small(match: Match, _text: str) -> Reason:
    length, asked, free = match.groups()
    found = f"out of memory: {free} GiB are left for the cache of keys and values, one request of max_model_len "
    hint = "lower max_model_len, or raise gpu_memory_utilization (on the CPU: VLLM_CPU_KVCACHE_SPACE, in GiB)"
    return Reason(f"{found}{length} asks for {asked} GiB", hint)


def _memory_changed(match: Match, _text: str) -> Reason:
    found = f"another process gave GPU memory back while vLLM measured it: {match[1]} GiB were free, then {match[2]}"
    return Reason(found, f"start again; {ONE_AT_A_TIME}")


def _holders() -> str:
    held = [f"{gpu.holders} on {gpu}" for gpu in visible_gpus() if gpu.processes]
    return f"; held now by {'; '.join(held)}" if held else ""


# Not "CUDA driver version is insufficient": Triton itself warns with that wherever there is no GPU, and goes on.
_RULES: tuple[tuple[re.Pattern[str], Callable[[Match, str], Reason]], ...] = (
    (re.compile(r"The NVIDIA driver on your system is too old \(found version (\d+)\)"), _old_driver),
    (re.compile(r"CUDA-capable device\(s\) is/are busy or unavailable"), _busy),
    (
        re.compile(
            r"No CUDA GPUs are available|Found no NVIDIA driver on your system|Failed to infer device type"
            r"|no CUDA-capable device is detected|has kind KIND_GPU but no GPUs are available"
        ),
        _no_gpu,
    ),
    (re.compile(r"invalid or unsupported gpu id (\d+)\. GPUs with at least [^\n]*? are: ([\d, ]*)"), _no_such_gpu),
    (
        re.compile(
            r"Free memory on device ?(\S*) \(([\d.]+)/([\d.]+) GiB\) on startup is less than desired GPU memory "
            r"utilization \(([\d.]+), ([\d.]+) GiB\)"
        ),
        _less_free_than_asked,
    ),
    (
        re.compile(
            rf"CUDA out of memory\. Tried to allocate ({SIZE})\. GPU (\d+) has a total capacity of ({SIZE}) of which "
            rf"({SIZE}) is free\.([^\n]*)"
        ),
        _allocation,
    ),
    (re.compile(r"No available memory for the cache blocks"), _no_room_for_cache),
    (
        re.compile(
            r"To serve at least one request with the models?'?s? max seq len \((\d+)\), \(?([\d.]+) GiB KV cache is "
            r"needed, which is larger than the available KV cache memory \(([\d.]+) GiB\)"
        ),
        _cache_too_small,
    ),
    (re.compile(r"CUDA (?:driver )?error: out of memory"), _no_context),
    (re.compile(r"Initial free memory ([\d.]+) GiB, current free memory ([\d.]+) GiB"), _memory_changed),
)
