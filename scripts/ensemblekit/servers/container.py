# SPDX-License-Identifier: Apache-2.0
"""Provider `container`: a Triton server in an image, run in the foreground so that log and exit code are its own.

The `run` is a command line of its own and not python-on-whales' `run`: the reaper has to be the parent of the
engine's client, so that the container ends with the kernel, however that ends; and a container that fails at
once must leave its exit code and its whole log, which a detached one may lose.
"""

import json
import os
import re
import resource
import secrets
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ensemblekit.errors import UnsupportedMachine
from ensemblekit.faults.catalogue import container_refusal
from ensemblekit.gpu import visible_gpu
from ensemblekit.releases import DocumentedRelease, Flavour, every_release
from ensemblekit.servers.container_engine import ContainerEngine, ensure_image, find_engine, no_progress
from ensemblekit.servers.ports import EVERYWHERE, LOOPBACK

__all__ = ["BUILT_IMAGES", "ContainerInstallation", "base_image", "image_of", "install_container"]

IMAGES_VARIABLE = "ENSEMBLEKIT_IMAGES"  # a mirror's name for nvcr.io/nvidia/tritonserver
NETWORK_VARIABLE = "ENSEMBLEKIT_CONTAINER_NETWORK"  # "host": where an engine cannot publish ports
ARGUMENTS_VARIABLE = "ENSEMBLEKIT_CONTAINER_ARGS"  # more arguments of `run`, for restricted hosts
NVIDIA_IMAGES = "nvcr.io/nvidia/tritonserver"
BUILT_IMAGES = "localhost/ensemblekit/tritonserver"
RUN_LABEL, EMULATION_LABEL = "ensemblekit.run", "ensemblekit.emulated"
SHARED_MEMORY = "1g"  # NVIDIA's own advice; the default of 64 MB is little for a few Python models
STACK_BYTES = 67108864  # NVIDIA's own advice, 64 MiB
STOP_TIMEOUT_S = 1  # for `rm -f` alone: a stop in order goes through the foreground process
OF_THIS_HOST = ("VLLM_CACHE_ROOT",)  # a folder that the container does not have
BACKENDS = "/opt/tritonserver/backends"  # in NVIDIA's images
LIST_TIMEOUT_S = 120.0  # a first start of an image on a slow disk
# podman asks for a million open files and processes; where this process may not, it is refused ("rlimit type 7").
# Some hosts refuse more than 32768 processes although their own limit says more.
PODMAN_LIMIT = 1048576
LOWERED = (("nofile", resource.RLIMIT_NOFILE, PODMAN_LIMIT), ("nproc", resource.RLIMIT_NPROC, 16384))
CDI_FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))


def image_of(release: DocumentedRelease, flavour: Flavour) -> str:
    """Return the image of a release and flavour: NVIDIA's own, or one that was built here.

    >>> from ensemblekit.releases import get_release
    >>> image_of(get_release("24.08"), "base-plus-vllm")
    'localhost/ensemblekit/tritonserver:24.08-base-plus-vllm'
    """
    if flavour == "vllm-image":
        return f"{os.environ.get(IMAGES_VARIABLE, NVIDIA_IMAGES)}:{release.name}-vllm-python-py3"
    return f"{BUILT_IMAGES}:{release.name}-{flavour}"


def base_image(release: DocumentedRelease) -> str:
    """Return NVIDIA's base image of a release: ensembles, no vLLM backend."""
    return f"{os.environ.get(IMAGES_VARIABLE, NVIDIA_IMAGES)}:{release.name}-py3"


@dataclass(frozen=True)
class ContainerInstallation:
    """An image that can be started, and what its `run` needs."""

    release: DocumentedRelease
    flavour: Flavour
    engine: ContainerEngine
    image: str
    digest: str
    emulated: bool
    run_id: str
    gpu: bool = False
    name: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def cleanup(self) -> list[str]:
        """The command that removes the container, however its foreground process ended."""
        return [self.engine.name, "rm", "-f", self.name]

    def command(
        self,
        repository: Path,
        ports: tuple[int, int, int],
        options: list[str],
        *,
        environment: dict[str, str],
        host: str = LOOPBACK,
    ) -> list[str]:
        """Return the command line that runs the server in the foreground, with everything mounted read-only."""
        shared = os.environ.get(NETWORK_VARIABLE) == "host"
        # published ports end inside the container at every address; outside they are at `host` alone
        hosts = (host, host, LOOPBACK)
        addresses = hosts if shared else (EVERYWHERE,) * len(hosts)
        published = [f"--publish={at}:{port}:{port}" for at, port in zip(hosts, ports, strict=True)]
        network = ["--network=host"] if shared else published
        mounts = [f"--volume={repository}:/models:ro"]
        mounts += [f"--volume={folder}:{folder}:ro" for folder in _weights(repository)]
        return [
            *(self.engine.name, "run", "--rm", "--pull=never", f"--name={self.name}"),
            *(f"--label={RUN_LABEL}={self.run_id}", *network, *mounts),
            *(f"--shm-size={SHARED_MEMORY}", f"--stop-timeout={STOP_TIMEOUT_S}", *_limits(self.engine)),
            *self._gpu_arguments(),
            *(f"--env={name}={value}" for name, value in environment.items() if name not in OF_THIS_HOST),
            *shlex.split(os.environ.get(ARGUMENTS_VARIABLE, "")),
            *(self.image, "tritonserver", "--model-repository=/models"),
            *(f"--{name}-address={at}" for name, at in zip(("http", "grpc", "metrics"), addresses, strict=True)),
            *options,
        ]

    def backend_folders(self) -> dict[str, tuple[str, ...]]:
        """Return the backends in the image, by name, each with its files.

        Raises:
            UnsupportedMachine: The engine did not run the image.
        """
        words = ("run", "--rm", "--pull=never", "--network=none", f"--label={RUN_LABEL}={self.run_id}")
        listing = ("--entrypoint=find", self.image, BACKENDS, "-mindepth", "1", "-maxdepth", "2", "-printf", "%P\n")
        done = self.engine.ask(*words, *_limits(self.engine), *listing, timeout_s=LIST_TIMEOUT_S)
        if done.returncode != 0:
            refused = container_refusal(done.returncode, done.stderr)
            raise UnsupportedMachine(
                f"list the backends of {self.image}",
                found=(done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1],
                hint=refused.hint if refused else "is that an image of Triton?",
            )
        found = dict[str, list[str]]()
        for name, _, file in (line.partition("/") for line in sorted(done.stdout.splitlines())):
            found.setdefault(name, []).extend([file] if file else [])
        return {name: tuple(files) for name, files in found.items()}

    def _gpu_arguments(self) -> list[str]:
        if not self.gpu:
            return []
        return ["--gpus=all"] if self.engine.name == "docker" else ["--device=nvidia.com/gpu=all"]


def install_container(
    release: DocumentedRelease,
    flavour: Flavour,
    run_id: str,
    *,
    gpu: bool = False,
    image: str | None = None,
    engine: ContainerEngine | None = None,
    progress: Callable[[str], None] = no_progress,
) -> ContainerInstallation:
    """Return a server that runs in a container; its image is pulled if it is not here.

    Args:
        release: Which Triton.
        flavour: As shipped, or one of the workarounds.
        run_id: What the container is labelled with.
        gpu: Whether the container gets all GPUs.
        image: Another image than the flavour's own.
        engine: The engine, found by itself if None.
        progress: Called twice a second while an image is pulled.

    Raises:
        UnsupportedMachine: No engine, none that runs, or no GPU although one is asked for.
        FetchError: The image cannot be had.
    """
    engine = engine or find_engine()
    if gpu:
        _require_gpu(engine)
    image = image or image_of(release, flavour)
    # of a size that is not known, the largest that is
    size_gb = release.vllm_image_gb or max(row.vllm_image_gb or 0.0 for row in every_release())
    ensure_image(engine, image, size_gb, progress=progress)
    return ContainerInstallation(
        release=release,
        flavour=flavour,
        engine=engine,
        image=image,
        digest=engine.digest(image),
        emulated=engine.label(image, EMULATION_LABEL) == "true",
        run_id=run_id,
        gpu=gpu,
        name=re.sub(r"[^\w.-]", "-", f"ensemblekit-{run_id}-{secrets.token_hex(3)}"),
    )


def _require_gpu(engine: ContainerEngine) -> None:
    if visible_gpu() is None:
        raise UnsupportedMachine(
            "give the container a GPU",
            found="no NVIDIA GPU that nvidia-smi can see",
            hint="use DEVICE 'cpu', or install NVIDIA's driver",
        )
    if engine.name == "podman" and not any(next(folder.glob("nvidia*"), None) for folder in CDI_FOLDERS):
        raise UnsupportedMachine(
            "give the container a GPU",
            found="a GPU, but no CDI description of it for podman in /etc/cdi",
            hint="install nvidia-container-toolkit, then `sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`",
        )


def _weights(repository: Path) -> tuple[Path, ...]:
    """Return the local folders that the repository's engines read, to be mounted where they are."""
    found = set[Path]()
    for file in repository.glob("*/*/model.json"):
        values = json.loads(file.read_text()).values()
        found |= {Path(value) for value in values if isinstance(value, str) and value.startswith("/")}
    return tuple(sorted(folder for folder in found if folder.is_dir()))


def _limits(engine: ContainerEngine) -> list[str]:
    """Return NVIDIA's advised limits; podman passes on only what this process itself may set."""
    advised = [f"--ulimit=stack={STACK_BYTES}"]
    if engine.name == "docker":
        return ["--ulimit=memlock=-1", *advised]
    if _may_lock_memory():
        advised.append("--ulimit=memlock=-1")
    for name, kind, enough in LOWERED:
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY and hard < PODMAN_LIMIT:
            advised.append(f"--ulimit={name}={min(hard, enough)}:{min(hard, enough)}")
    return advised


def _may_lock_memory() -> bool:
    everything = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    try:
        subprocess.run(["true"], preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, everything), check=True)
    except (OSError, subprocess.SubprocessError, ValueError):
        return False
    return True
