# SPDX-License-Identifier: Apache-2.0
"""Build the image of workaround 1 from its Containerfile, and take away everything that building it left."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ensemblekit.errors import FetchError, KitError, one_of
from ensemblekit.faults.log import tail
from ensemblekit.paths import cache_dir, repo_root
from ensemblekit.releases import Flavour, Release
from ensemblekit.servers.container import base_image, image_of
from ensemblekit.servers.container_engine import (
    GB,
    ContainerEngine,
    ensure_image,
    find_engine,
    follow,
    log_of,
    no_progress,
    require_disk,
)

__all__ = ["Backend", "BuiltImage", "Removed", "build_image", "remove_image"]

logger = logging.getLogger(__name__)

Backend = Literal["upstream", "kit"]
FLAVOUR: Flavour = "base-plus-vllm"
LABEL = "ensemblekit.workaround"
KIT_VLLM = "vllm==0.25.1"  # what the kit's backend is tested with on a GPU, see env/locks/cuda.txt
NO_VLLM = "none"
VLLM_GB = 10.0  # torch 2.3.1 for CUDA, NVIDIA's libraries and vLLM, unpacked
BACKEND_GB = 0.1
LOG_TAIL_LINES = 20
# of urllib, of the resolver, and of pip, which tries others before it says that there are no versions at all
NO_NETWORK = ("urlopen error", "Temporary failure in name resolution", "NewConnectionError", "(from versions: none)")


@dataclass(frozen=True)
class BuiltImage:
    """An image that was built here, and what that cost."""

    image: str
    digest: str
    base: str
    backend: Backend
    vllm: str
    seconds: float
    gb: float
    log_path: Path


@dataclass(frozen=True)
class Removed:
    """What a removal took away, by name or id."""

    containers: tuple[str, ...]
    images: tuple[str, ...]
    volumes: tuple[str, ...]

    def __str__(self) -> str:
        parts = {"containers": self.containers, "images": self.images, "volumes": self.volumes}
        return ", ".join(f"{len(names)} {kind}" for kind, names in parts.items())


def build_image(
    release: Release,
    *,
    base: str | None = None,
    backend: Backend = "upstream",
    vllm: str | None = None,
    progress: Callable[[str], None] = no_progress,
) -> BuiltImage:
    """Build `base-plus-vllm` of a release from env/containers/base-plus-vllm.Containerfile and return it.

    Args:
        release: Which Triton.
        base: Another base image than NVIDIA's own of this release.
        backend: `upstream` at the release's branch, or the `kit`'s own.
        vllm: What pip installs; by default the release's own vLLM, or the kit's for its backend. `none`: no vLLM.
        progress: Called twice a second with the last line of the pull or build.

    Raises:
        ParameterError: There is no such backend.
        UnsupportedMachine: No container engine.
        FetchError: The base image cannot be had, or a package or the backend could not be fetched.
        KitError: The build failed otherwise.
    """
    one_of("the backend", backend, get_args(Backend))
    engine, base = find_engine(), base or base_image(release)
    vllm = vllm or (KIT_VLLM if backend == "kit" else f"vllm=={release.vllm}")
    image = image_of(release, FLAVOUR)
    was_here = engine.has_image(base)
    ensure_image(engine, base, release.vllm_image_gb, progress=progress)
    if not was_here:
        _remember(release, base, engine.inspect(base).id)
    require_disk(engine, f"build {image}", BACKEND_GB if vllm == NO_VLLM else VLLM_GB)
    log, begin = log_of("build", image), time.monotonic()
    if follow(_command(engine, release, image, base, backend, vllm), log, progress) != 0:
        raise _build_error(image, log)
    built = engine.inspect(image)
    seconds, gb = time.monotonic() - begin, (built.size or 0) / GB
    return BuiltImage(image, engine.digest(image), base, backend, vllm, seconds, gb, log)


def _command(
    engine: ContainerEngine, release: Release, image: str, base: str, backend: Backend, vllm: str
) -> list[str]:
    """Return the command line of the build; python-on-whales' own `build` for podman has no live log."""
    arguments = {"BASE": base, "RELEASE": release.name, "BACKEND": backend, "VLLM": vllm}
    arguments["BACKEND_REF"] = f"r{release.name}"
    plain = ["--progress=plain"] if engine.name == "docker" else []
    context = repo_root() / "env"
    file = context / "containers" / f"{FLAVOUR}.Containerfile"
    options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    return [engine.name, "build", *plain, f"--file={file}", f"--tag={image}", *options, str(context)]


def _build_error(image: str, log: Path) -> KitError:
    lines = tail(log, LOG_TAIL_LINES)
    said = [line.strip() for line in lines if line.strip()]
    found = next((line for line in reversed(said) if line.startswith("ERROR: ")), said[-1] if said else "no message")
    text = "\n".join(lines)
    if any(word in text for word in NO_NETWORK):
        hint = "is the network reachable inside a build? Behind a proxy, the engine has its own proxy setting"
        return FetchError(f"build {image}", found=found, hint=hint, log_path=log, log_tail=lines)
    hint = "read the log's first error; a build that was interrupted goes on where its last layer ended"
    return KitError(f"build {image}", found=found, hint=hint, log_path=log, log_tail=lines)


def remove_image(release: Release) -> Removed:
    """Remove the image of a release, its layers, containers and volumes, and the base if the build pulled it.

    Raises:
        UnsupportedMachine: No container engine.
    """
    engine = find_engine()
    client = engine.client
    mine: list[tuple[Literal["label"], str]] = [("label", _label(release))]
    containers = client.container.list(all=True, filters=mine)
    for container in containers:
        client.container.remove(container, force=True, volumes=True)
    volumes = client.volume.list(filters=mine)
    for volume in volumes:
        client.volume.remove(volume)
    images = _remove_images(engine, release)
    base, identity = _forget(release)
    if base and engine.has_image(base) and engine.inspect(base).id == identity:
        client.image.remove(base)
        images.append(base)
    return Removed(tuple(c.name for c in containers), tuple(images), tuple(v.name for v in volumes))


def _label(release: Release) -> str:
    """Return the label of all that the build makes: one, since podman takes images with any of several."""
    return f"{LABEL}={FLAVOUR}-{release.name}"


def _remove_images(engine: ContainerEngine, release: Release) -> list[str]:
    """Remove the tagged image, which takes its layers along, then what an interrupted build left."""
    removed, image = list[str](), image_of(release, FLAVOUR)
    if engine.has_image(image):
        engine.client.image.remove(image)
        removed.append(image)
    left = ("image", "ls", "--all", "--quiet", f"--filter=label={_label(release)}")
    while names := engine.ask(*left).stdout.split():
        if engine.ask("image", "rm", "--force", names[0]).returncode != 0:
            break
        removed.append(names[0])
    return removed


def _note(release: Release) -> Path:
    return cache_dir() / "workaround" / f"{release.name}.json"


def _remember(release: Release, base: str, identity: str) -> None:
    """Note that the build brought this base image: only then does the removal take it away."""
    note = _note(release)
    note.parent.mkdir(exist_ok=True)
    note.write_text(json.dumps({"base": base, "id": identity}) + "\n")


def _forget(release: Release) -> tuple[str, str]:
    """Return name and id of the base image that the build brought, empty if it was here before or nobody knows."""
    note = _note(release)
    if not note.is_file():
        return "", ""
    try:
        values = json.loads(note.read_text())
        return str(values["base"]), str(values["id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        logger.warning("%s is broken, so the base image stays: remove it by hand if nothing else needs it", note)
        return "", ""
    finally:
        note.unlink()
