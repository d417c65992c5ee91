# SPDX-License-Identifier: Apache-2.0
"""The manifests of env/kubernetes: valid for three versions, kept to a policy, of one mind with the rest of the kit."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ensemblekit.paths import repo_root
from ensemblekit.repository.read import read_config
from tests.kustomize import FOLDERS, KUBERNETES, documents, kubectl, render

VERSIONS = ("1.28", "1.32", "1.37")  # a probe's own grace is stable since 1.28; kubectl's; the newest with a schema
SERVERS = FOLDERS[:4]
SHM_MIB_PER_INSTANCE = 64
UNITS_MIB = {"Mi": 1, "Gi": 1024}
SECRET_NAMES = ("KEY", "TOKEN", "PASSWORD", "SECRET")
SCRIPTS = KUBERNETES / "base"

every_folder = pytest.mark.parametrize("folder", FOLDERS)
every_server = pytest.mark.parametrize("folder", SERVERS)


@pytest.fixture(autouse=True, scope="module")
def _a_kubectl() -> None:
    kubectl()


def one(folder: str, kind: str) -> dict[str, Any]:
    """The only document of a kind."""
    (found,) = (document for document in documents(folder) if document["kind"] == kind)
    return found


def pod(folder: str) -> dict[str, Any]:
    """The specification of a folder's pods."""
    spec: dict[str, Any] = one(folder, "Job" if folder == "job" else "Deployment")["spec"]["template"]["spec"]
    return spec


def containers(folder: str) -> list[dict[str, Any]]:
    """All containers of a folder's pods."""
    return [*pod(folder).get("initContainers", []), *pod(folder)["containers"]]


def values(container: dict[str, Any]) -> dict[str, Any]:
    """The variables of a container that have a plain value."""
    return {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}


def mib(size: str) -> int:
    """A size in MiB."""
    return int(size[:-2]) * UNITS_MIB[size[-2:]]


@every_folder
@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid_to_the_letter(folder: str, version: str) -> None:
    for document in documents(folder):
        kubernetes_validate.validate(document, version, strict=True)


def test_validator_refuses_a_misspelt_field() -> None:
    (deployment,) = (text for text in render("overlays/cpu").split("---\n") if "kind: Deployment" in text)
    document = yaml.safe_load(deployment.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem"))

    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRootFileSystem"):
        kubernetes_validate.validate(document, VERSIONS[0], strict=True)


@every_folder
def test_pods_are_not_root_and_hold_nothing_of_the_host(folder: str) -> None:
    spec = pod(folder)

    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
    assert not [port for one in containers(folder) for port in one.get("ports", []) if "hostPort" in port]
    expected = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert [container["securityContext"] for container in containers(folder)] == [expected] * len(containers(folder))


@every_folder
def test_images_have_a_tag_that_stays(folder: str) -> None:
    tags = [container["image"].rpartition("/")[2].partition(":")[2] for container in containers(folder)]

    assert all(tags)
    assert "latest" not in tags
    assert all(container["imagePullPolicy"] == "IfNotPresent" for container in containers(folder))


@every_folder
def test_containers_have_requests_and_limits(folder: str) -> None:
    for container in containers(folder):
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), container["name"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), container["name"]


@every_server
def test_server_has_all_probes_and_liveness_asks_the_ensemble(folder: str) -> None:
    (triton,) = pod(folder)["containers"]

    assert (
        triton["startupProbe"]["httpGet"]["path"] == triton["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    )
    program, script, model, deadline_s = triton["livenessProbe"]["exec"]["command"]
    assert (program, script, model) == ("python3", "/scripts/alive.py", "ensemble")
    assert int(deadline_s) < triton["livenessProbe"]["timeoutSeconds"]


@every_folder
def test_secrets_are_neither_in_the_manifests_nor_plain_in_a_variable(folder: str) -> None:
    plain = [name for container in containers(folder) for name in values(container)]

    assert not [name for name in plain if name.endswith(SECRET_NAMES)]
    assert not [document for document in documents(folder) if document["kind"] == "Secret"]


@every_server
def test_model_control_wants_the_key_of_the_secret_over_http_and_grpc(folder: str) -> None:
    (triton,) = pod(folder)["containers"]
    (source,) = [entry["valueFrom"] for entry in triton["env"] if entry["name"] == "CONTROL_KEY"]

    assert source == {"secretKeyRef": {"name": "triton-control", "key": "key"}}
    for option in ("--http-restricted-api", "--grpc-restricted-protocol"):
        assert f'{option}="model-repository:ensemblekit-key=$CONTROL_KEY"' in triton["command"][-1]


@every_server
def test_shared_memory_is_memory_and_has_room_for_every_instance(folder: str) -> None:
    models = {path.parent.name: path.parent for path in (repo_root() / "model_repo").glob("*/config.pbtxt")}
    del models["bls"]  # fill.py leaves it out
    instances = sum(group.count or 1 for path in models.values() for group in read_config(path).instance_group)
    (shm,) = (volume["emptyDir"] for volume in pod(folder)["volumes"] if volume["name"] == "shm")
    (triton,) = pod(folder)["containers"]

    assert shm["medium"] == "Memory"
    assert mib(shm["sizeLimit"]) >= instances * SHM_MIB_PER_INSTANCE
    assert mib(shm["sizeLimit"]) <= mib(triton["resources"]["limits"]["memory"]) / 2
    assert {"name": "shm", "mountPath": "/dev/shm"} in triton["volumeMounts"]


@every_server
def test_init_container_fills_the_folder_that_the_server_reads(folder: str) -> None:
    filler, (triton,) = pod(folder)["initContainers"][0], pod(folder)["containers"]

    assert values(filler)["REPOSITORY"] == values(triton)["REPOSITORY"]
    assert {"name": "models", "mountPath": "/models"} in filler["volumeMounts"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in triton["volumeMounts"]


@every_server
def test_service_budget_and_network_policy_mean_the_servers_pods(folder: str) -> None:
    labels = one(folder, "Deployment")["spec"]["template"]["metadata"]["labels"]

    assert one(folder, "Service")["spec"]["selector"].items() <= labels.items()
    assert one(folder, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert one(folder, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_job_may_ask_the_server_and_names_its_service() -> None:
    labels = one("job", "Job")["spec"]["template"]["metadata"]["labels"]
    (client, _) = one("overlays/cpu", "NetworkPolicy")["spec"]["ingress"]
    sets = yaml.safe_load(one("job", "ConfigMap")["data"]["sweep.yaml"])

    assert client["from"][0]["podSelector"]["matchLabels"].items() <= labels.items()
    assert one("job", "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert {entry["URL"].partition(":")[0] for entry in sets} == {one("overlays/cpu", "Service")["metadata"]["name"]}


def test_autoscaler_asks_for_the_metric_that_the_adapter_makes_of_the_backends_own() -> None:
    (metric,) = one("overlays/gpu", "HorizontalPodAutoscaler")["spec"]["metrics"]
    adapter = yaml.safe_load((KUBERNETES / "overlays/gpu/prometheus-adapter-values.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    source = (repo_root() / "env/backends/vllm/triton_vllm/metrics.py").read_text()
    gauges = next(ast.literal_eval(node.value) for node in ast.parse(source).body
                  if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "GAUGES")  # fmt: skip

    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    (series,) = (name for name in gauges if f'"{name}"' in rule["seriesQuery"])
    assert rule["name"]["as"] == series.replace(":", "_")
    assert "replicas" not in one("overlays/gpu", "Deployment")["spec"]  # the autoscaler's


def test_podmans_overlay_changes_two_things_of_the_cpus() -> None:
    ours, theirs = pod("overlays/podman"), pod("overlays/cpu")

    assert ours.pop("restartPolicy") == "OnFailure"
    assert ours["initContainers"][0]["volumeMounts"].pop() == {"name": "shm", "mountPath": "/shm"}
    assert ours == theirs


def test_seats_of_the_hub_may_ask_the_workshops_server() -> None:
    seats = yaml.safe_load((repo_root() / "env/jupyterhub/values.yaml").read_text())["singleuser"]
    service = one("overlays/workshop", "Service")["metadata"]
    rules = one("overlays/workshop", "NetworkPolicy")["spec"]["ingress"]
    (egress,) = seats["networkPolicy"]["egress"]

    assert seats["extraEnv"]["ENSEMBLEKIT_URL"] == f"{service['name']}.{service['namespace']}.svc:8000"
    assert egress["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": service["namespace"]}
    assert seats["extraLabels"] == rules[-1]["from"][0]["podSelector"]["matchLabels"]
    assert seats["image"]["tag"] not in ("", "latest")


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The init container's script, on this checkout and a volume of the test's own."""
    spec = importlib.util.spec_from_file_location("fill", SCRIPTS / "fill.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "KIT", repo_root())
    for name in ("MODEL", "LIMITS"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_fill_puts_the_stand_in_once_and_keeps_what_is_there(fill: ModuleType, tmp_path: Path) -> None:
    done = fill.main(tmp_path / "first")
    (tmp_path / "first" / "mine").touch()
    again = fill.main(tmp_path / "first")

    assert done.endswith("ensemble, llm, postprocess, preprocess")
    assert read_config(tmp_path / "first" / "llm").backend == "python"
    assert again.endswith("is there already")
    assert (tmp_path / "first" / "mine").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_fill_names_the_model_and_the_limits(fill: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop = values(pod("overlays/workshop")["initContainers"][0])
    monkeypatch.setenv("LIMITS", workshop["LIMITS"])
    monkeypatch.setenv("MODEL", "owner/name")

    fill.main(tmp_path / "vllm")

    assert json.loads((tmp_path / "vllm/llm/1/model.json").read_text())["model"] == "owner/name"
    limits = read_config(tmp_path / "vllm" / "preprocess").parameters["limits"].string_value
    assert json.loads(limits) == json.loads(workshop["LIMITS"])


def test_fill_that_fails_leaves_nothing(fill: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMITS", "no JSON")

    with pytest.raises(ValueError, match="Expecting value"):
        fill.main(tmp_path / "broken")

    assert list(tmp_path.iterdir()) == []


def test_liveness_says_in_one_line_what_is_wrong() -> None:
    """Nothing listens on port 8000 of an empty network; the real server is asked in tests/containers."""
    command = ["unshare", "--net", sys.executable, str(SCRIPTS / "alive.py"), "ensemble", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if "unshare" in done.stderr:
        pytest.skip(f"no network of its own here: {done.stderr.strip()}")

    assert done.returncode == 1
    assert done.stderr.startswith("not alive: ensemble failed: ")
    assert len(done.stderr.splitlines()) == 1
