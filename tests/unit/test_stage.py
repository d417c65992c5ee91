# SPDX-License-Identifier: Apache-2.0
"""Staging copies the repository and never edits the original."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemblekit.assets.store import sha256_of
from ensemblekit.assets.weights import ModelSource
from ensemblekit.errors import OutOfGpuMemory, RepositoryError, UnsupportedMachine
from ensemblekit.paths import repo_root
from ensemblekit.repository.read import read_config
from ensemblekit.repository.stage import StagedRepository, engine_environment, stage_repository
from tests.conftest import DATA
from tests.fake_nvidia_smi import UUIDS


def _content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def test_stage_repository_without_llm_is_a_plain_copy(tmp_path: Path) -> None:
    original = DATA / "report_repository"

    staged = stage_repository(tmp_path / "models", source=None, device="cpu", original=original)

    assert staged.models == ("ensemble", "main_app", "pre")
    assert _content(staged.path) == _content(original)


def test_stage_repository_stand_in_replaces_llm_and_leaves_the_original(tmp_path: Path, model_repo: Path) -> None:
    before = _content(model_repo)

    staged = stage_repository(tmp_path / "models", source=None, device="cpu")

    assert 'backend: "python"' in staged.config_text("llm")
    assert staged.environment == {}
    assert _content(model_repo) == before


@pytest.mark.parametrize("bls", [True, False], ids=["asked-for", "left-out"])
def test_stage_repository_holds_the_bls_pipeline_only_when_asked(tmp_path: Path, bls: bool) -> None:
    staged = stage_repository(tmp_path / "models", source=None, device="cpu", bls=bls)

    assert ("bls" in staged.models) is bls
    assert {"ensemble", "llm", "postprocess", "preprocess"} <= set(staged.models)


def test_stage_repository_twice_replaces_the_first(tmp_path: Path) -> None:
    target = tmp_path / "models"
    target.mkdir()
    (target / "old").mkdir()

    staged = stage_repository(target, source=None, device="cpu", original=DATA / "report_repository")

    assert "old" not in staged.models


@pytest.mark.parametrize("name", ["nowhere", ""], ids=["missing", "empty"])
def test_stage_repository_without_models_says_what_belongs_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match=r"stage the model repository[\s\S]*Hint: give the folder"):
        stage_repository(tmp_path / "models", source=None, device="cpu", original=tmp_path / name)


def test_staged_tree_lists_the_files_without_compiled_ones(tmp_path: Path) -> None:
    staged = stage_repository(tmp_path / "models", source=None, device="cpu", original=DATA / "report_repository")

    assert staged.tree().startswith("models/\n    ensemble/\n")
    assert "__pycache__" not in staged.tree()


A_MODEL = ModelSource("/nowhere/model", "/nowhere/model", local=True)


def staged_engine(staged: StagedRepository) -> dict[str, Any]:
    return dict(json.loads((staged.path / "llm" / "1" / "model.json").read_text()))


def test_stage_for_cuda_sizes_the_fraction_to_what_a_fake_nvidia_smi_says_is_free(
    tmp_path: Path, a_fake_nvidia_smi: Callable[..., None]
) -> None:
    a_fake_nvidia_smi(free_mib=(40_000,))

    staged = stage_repository(tmp_path / "models", source=A_MODEL, device="cuda")

    assert staged_engine(staged)["gpu_memory_utilization"] == 0.465
    assert "KIND_MODEL" in staged.config_text("llm")


def test_stage_for_cuda_own_fraction_wins_whatever_a_fake_nvidia_smi_says(
    tmp_path: Path, a_fake_nvidia_smi: Callable[..., None]
) -> None:
    a_fake_nvidia_smi(free_mib=(100,))
    own = {"gpu_memory_utilization": 0.9}

    staged = stage_repository(tmp_path / "models", source=A_MODEL, device="cuda", engine_arguments=own)

    assert staged_engine(staged)["gpu_memory_utilization"] == 0.9


def test_stage_for_cuda_full_gpu_of_a_fake_nvidia_smi_names_its_holder_and_the_free_gpu(
    tmp_path: Path, a_fake_nvidia_smi: Callable[..., None]
) -> None:
    a_fake_nvidia_smi(free_mib=(100, 81_008), processes=(f"{UUIDS[0]}, 4242, python3, 80900 MiB",))

    with pytest.raises(OutOfGpuMemory) as caught:
        stage_repository(tmp_path / "models", source=A_MODEL, device="cuda")

    assert "100 of 81559 MiB are free" in caught.value.found
    assert "held by pid 4242 (python3): 80900 MiB" in caught.value.found
    assert caught.value.hint.startswith("CUDA_VISIBLE_DEVICES=1 has enough free memory; or stop")


@pytest.mark.parametrize(("capability", "dtype"), [("7.5", "float16"), ("8.0", "bfloat16"), ("10.0", "bfloat16")])
def test_stage_for_cuda_uses_a_type_that_the_gpu_of_a_fake_nvidia_smi_knows(
    tmp_path: Path, a_fake_nvidia_smi: Callable[..., None], capability: str, dtype: str
) -> None:
    a_fake_nvidia_smi(capability=capability)

    staged = stage_repository(tmp_path / "models", source=A_MODEL, device="cuda")

    assert staged_engine(staged)["dtype"] == dtype


def test_stage_tensor_parallel_on_two_gpus_of_a_fake_nvidia_smi_is_one_instance_that_chooses_its_gpus(
    tmp_path: Path, a_fake_nvidia_smi: Callable[..., None]
) -> None:
    a_fake_nvidia_smi(free_mib=(81_008, 20_000))

    staged = stage_repository(tmp_path / "models", source=A_MODEL, device="cuda", tensor_parallel=2)

    (group,) = read_config(staged.path / "llm").instance_group
    assert (group.count, group.kind, list(group.gpus)) == (1, group.KIND_MODEL, [])
    assert staged_engine(staged)["tensor_parallel_size"] == 2
    assert staged_engine(staged)["gpu_memory_utilization"] == 0.22


def test_stage_replicas_on_two_gpus_of_a_fake_nvidia_smi_are_one_instance_a_gpu(
    tmp_path: Path, a_fake_nvidia_smi: Callable[..., None]
) -> None:
    a_fake_nvidia_smi(free_mib=(81_008, 20_000))

    staged = stage_repository(tmp_path / "models", source=A_MODEL, device="cuda", replicas=2)

    (group,) = read_config(staged.path / "llm").instance_group
    assert (group.count, group.kind, list(group.gpus)) == (1, group.KIND_GPU, [0, 1])
    assert "tensor_parallel_size" not in staged_engine(staged)
    assert staged_engine(staged)["gpu_memory_utilization"] == 0.22


@pytest.mark.parametrize(("cores", "wanted"), [(2, 1), (8, 2), (64, 4)])
def test_stage_for_a_gpu_of_a_fake_nvidia_smi_gives_preprocess_a_process_for_every_four_cores(
    tmp_path: Path, a_fake_nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch, cores: int, wanted: int
) -> None:
    a_fake_nvidia_smi()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))

    staged = stage_repository(tmp_path / "models", source=A_MODEL, device="cuda")

    counts = {
        model: read_config(staged.path / model).instance_group[0].count for model in ("preprocess", "postprocess")
    }
    assert counts == {"preprocess": wanted, "postprocess": 1}


def test_stage_for_a_cpu_leaves_preprocess_its_one_process(tmp_path: Path) -> None:
    staged = stage_repository(tmp_path / "models", source=A_MODEL, device="cpu")

    assert read_config(staged.path / "preprocess").instance_group[0].count == 1


def test_stage_pipeline_parallel_as_an_engine_argument_is_kind_model_with_a_fake_nvidia_smi(
    tmp_path: Path, a_fake_nvidia_smi: Callable[..., None]
) -> None:
    a_fake_nvidia_smi(free_mib=(81_008, 81_008))
    original = tmp_path / "original"
    shutil.copytree(repo_root() / "model_repo", original)
    config = original / "llm" / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_MODEL", "KIND_GPU"))

    staged = stage_repository(
        tmp_path / "models", source=A_MODEL, device="cuda", original=original,
        engine_arguments={"pipeline_parallel_size": 2},
    )  # fmt: skip

    (group,) = read_config(staged.path / "llm").instance_group
    assert group.kind == group.KIND_MODEL


def test_stage_more_replicas_than_a_fake_nvidia_smi_shows_is_an_error(
    tmp_path: Path, a_fake_nvidia_smi: Callable[..., None]
) -> None:
    a_fake_nvidia_smi()

    with pytest.raises(UnsupportedMachine, match=r"for 99 GPUs.*\n.*99 GPUs are asked for; 1 visible"):
        stage_repository(tmp_path / "models", source=A_MODEL, device="cuda", replicas=99)


def test_stage_replicas_of_two_gpus_each_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"2 replicas of 2 GPUs each[\s\S]*Hint: start one server for each"):
        stage_repository(tmp_path / "models", source=A_MODEL, device="cuda", replicas=2, tensor_parallel=2)


@pytest.mark.parametrize(
    ("source", "device", "how", "found"),
    [(A_MODEL, "cpu", {"replicas": 2}, "device cpu"), (None, "cuda", {"tensor_parallel": 2}, "stand-in")],
    ids=["cpu", "stand-in"],
)
def test_stage_several_gpus_without_vllm_on_cuda_is_an_error(
    tmp_path: Path, source: ModelSource | None, device: str, how: dict[str, int], found: str
) -> None:
    with pytest.raises(UnsupportedMachine, match=found):
        stage_repository(tmp_path / "models", source=source, device=device, **how)  # type: ignore[arg-type]


def test_stage_replicas_of_the_stand_in_are_so_many_slow_processes(tmp_path: Path) -> None:
    staged = stage_repository(tmp_path / "models", source=None, device="cpu", replicas=3, stand_in_token_s=0.25)

    config = read_config(staged.path / "llm")
    (group,) = config.instance_group
    assert (group.count, group.kind) == (3, group.KIND_CPU)
    assert config.parameters["seconds_per_token"].string_value == "0.25"


def test_engine_environment_keeps_compiled_code_in_the_kits_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSEMBLEKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)

    assert engine_environment("cuda")["VLLM_CACHE_ROOT"] == str(tmp_path.resolve() / "vllm")
    assert engine_environment("cuda")["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "CUDA_DEVICE_ORDER" not in engine_environment("cpu")


def test_engine_environment_leaves_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/somewhere")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")

    cuda, cpu = engine_environment("cuda"), engine_environment("cpu")
    assert (cuda["VLLM_CACHE_ROOT"], cuda["CUDA_DEVICE_ORDER"]) == ("/somewhere", "FASTEST_FIRST")
    assert cpu["VLLM_CPU_KVCACHE_SPACE"] == "4"  # said, not left out: a container sees nothing else
