# SPDX-License-Identifier: Apache-2.0
"""The kit on a real GPU: the ensemble answers, memory is sized to what is free, and what goes wrong is said clearly.

`scripts/test tests/gpu -rP` also prints what was found. About four minutes with one GPU, seven with two.
"""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ensemblekit.assets.weights import ensure_checkpoint
from ensemblekit.clients.grpc import ask, ask_many
from ensemblekit.diagnose.preflight import gpu_row
from ensemblekit.errors import OutOfGpuMemory, ServerExited, UnsupportedMachine
from ensemblekit.faults.log import read_log
from ensemblekit.gpu import Gpu, visible_gpus
from ensemblekit.paths import cache_dir
from ensemblekit.repository.gpu_memory import MARGIN_MIB, model_need
from ensemblekit.repository.stage import StagedRepository
from ensemblekit.servers.process import TritonServer
from ensemblekit.servers.ray import RAY_ENGINE, RayCluster
from ensemblekit.settings import check_settings
from tests.gpu.conftest import START_TIMEOUT_S, GpuServers

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
GREEDY = {"max_tokens": 32, "temperature": 0.0}
GIB_MIB = 1024

pytestmark = [pytest.mark.gpu, pytest.mark.server, pytest.mark.slow]


def engine_arguments(repository: StagedRepository | TritonServer) -> dict[str, object]:
    """What a staged engine is started with."""
    folder = repository.path if isinstance(repository, StagedRepository) else repository.repository
    return dict(json.loads((folder / "llm" / "1" / "model.json").read_text()))


def answer(server: TritonServer) -> str:
    """The ensemble's answer."""
    return ask(server, QUESTION, sampling_parameters=GREEDY).text


def test_a_gpu_is_visible_and_complete(a_gpu: Gpu) -> None:
    print(a_gpu, a_gpu.driver, a_gpu.capability, a_gpu.free_mib, a_gpu.total_mib, a_gpu.processes)

    assert a_gpu.total_mib
    assert a_gpu.free_mib
    assert a_gpu.capability
    assert check_settings(DEVICE="cuda").resolved_device == check_settings().resolved_device == "cuda"
    assert gpu_row().fine


def test_ensemble_on_the_gpu_gives_the_known_answer(a_gpu_server: TritonServer) -> None:
    assert answer(a_gpu_server) == ANSWER


def test_fraction_of_the_gpu_fits_what_was_free(a_gpu: Gpu, a_gpu_server: TritonServer) -> None:
    fraction = engine_arguments(a_gpu_server)["gpu_memory_utilization"]
    print("fraction", fraction)

    assert isinstance(fraction, float)
    assert a_gpu.free_mib
    assert a_gpu.total_mib
    assert 0 < fraction * a_gpu.total_mib <= a_gpu.free_mib - MARGIN_MIB


def torchs_total_mib() -> float:
    """All memory of the first GPU as torch counts it: a little less than the driver's tool says."""
    ask_torch = "import torch; print(torch.cuda.get_device_properties(0).total_memory)"
    return int(subprocess.check_output([sys.executable, "-c", ask_torch])) / 2**20


def test_need_of_the_model_is_not_less_than_what_vllm_takes(a_gpu_server: TritonServer) -> None:
    arguments = engine_arguments(a_gpu_server)
    need = model_need(Path(ensure_checkpoint().engine_model), arguments)
    left = re.findall(r"Available KV cache memory: ([\d.]+) GiB", read_log(a_gpu_server.log_path))[-1]
    fraction = arguments["gpu_memory_utilization"]
    assert isinstance(fraction, float)
    taken_mib = fraction * torchs_total_mib() - float(left) * GIB_MIB
    print(f"need {need}, taken besides the cache {taken_mib:.0f} MiB, left for the cache {left} GiB")

    assert taken_mib <= need.weights_mib + need.working_mib


def test_start_has_the_phases_of_a_gpu(a_gpu_server: TritonServer) -> None:
    phases = a_gpu_server.start_phases
    print(phases, a_gpu_server.started_s)

    assert list(phases) == ["import", "processes", "weights", "compile", "graphs", "warm-up", "rest"]


def test_compiled_code_is_kept_in_the_kits_cache(a_gpu_server: TritonServer) -> None:
    assert a_gpu_server.environment["VLLM_CACHE_ROOT"] == str(cache_dir() / "vllm")
    assert any(path.is_file() for path in (cache_dir() / "vllm").rglob("*"))


def test_more_replicas_than_gpus_is_a_clear_error(gpu_servers: GpuServers) -> None:
    with pytest.raises(UnsupportedMachine) as caught:
        gpu_servers.stage(replicas=99)
    print(caught.value)

    assert f"99 GPUs are asked for; {len(visible_gpus())} visible" in caught.value.found


def test_memory_held_by_another_process_is_said_before_and_after_a_start(
    gpu_servers: GpuServers, a_process_that_holds_the_memory: "subprocess.Popen[str]"
) -> None:
    with pytest.raises(OutOfGpuMemory) as sized:
        gpu_servers.stage()
    print(sized.value)
    gpu = visible_gpus()[0]
    assert re.search(r"out of memory: \d+ of \d+ MiB are free, \d+ MiB are asked for", sized.value.found)
    if gpu.processes:  # a container may hide them
        assert all(str(process.pid) in sized.value.found for process in gpu.processes)

    server = gpu_servers.server(gpu_servers.stage(engine_arguments={"gpu_memory_utilization": 0.5}))
    with pytest.raises(ServerExited) as refused:
        server.start(START_TIMEOUT_S)
    print(refused.value.found, refused.value.hint, sep="\n")
    assert re.search(r"out of GPU memory: .*(were free on|leaves)", refused.value.found)
    assert "hold" in refused.value.hint or "gpu_memory_utilization" in refused.value.hint


def test_tensor_parallel_on_two_gpus_answers(gpu_servers: GpuServers) -> None:
    server = gpu_servers.start(tensor_parallel=2)
    print(server.start_phases, engine_arguments(server))
    try:
        assert answer(server) == ANSWER
    finally:
        server.stop()


def test_two_replicas_on_two_gpus_answer(gpu_servers: GpuServers) -> None:
    server = gpu_servers.start(replicas=2)
    print(server.start_phases, engine_arguments(server))
    try:
        answers = asyncio.run(ask_many(server, [QUESTION] * 32, sampling_parameters=GREEDY))
        devices = re.findall(r"ModelInstanceInitialize: llm_\S+ \(GPU device (\d+)\)", read_log(server.log_path))
        assert {one.text for one in answers} == {ANSWER}
        assert set(devices) == {"0", "1"}
    finally:
        server.stop()


def test_one_engine_over_two_nodes_of_ray_and_two_gpus_answers(gpu_servers: GpuServers, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is no part of the kit's environments: `.venv/bin/pip install ray`")
    cluster = RayCluster(tuple(gpu.device for gpu in visible_gpus()[:2]), tmp_path)
    repository = gpu_servers.stage(tensor_parallel=2, engine_arguments=dict(RAY_ENGINE))
    server = gpu_servers.server(repository)
    try:
        repository.environment["RAY_ADDRESS"] = cluster.start().address
        assert answer(server.start(START_TIMEOUT_S)) == ANSWER
    finally:
        server.stop()
        cluster.stop()
