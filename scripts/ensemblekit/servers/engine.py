# SPDX-License-Identifier: Apache-2.0
"""The container engine, docker or podman: found by itself, asked for images, with one clear error for each refusal."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ensemblekit.errors import FetchError, KitError, ParameterError, UnsupportedMachine

__all__ = ["ENGINE_VARIABLE", "ContainerEngine", "ensure_image", "find_engine"]

ENGINE_VARIABLE = "ENSEMBLEKIT_ENGINE"
ENGINES = ("docker", "podman")
ASK_TIMEOUT_S = 30.0  # an engine that answers does so in a second
UNPACK_FACTOR = 1.3  # a layer's archive and its files are on the disk at once while a pull unpacks
GB = 10**9
NO_NETWORK = ("no such host", "dial tcp", "connection refused", "i/o timeout", "unreachable", "TLS handshake")
NO_LOGIN = ("unauthorized", "authentication required", "denied")
NO_TAG = ("manifest unknown", "not found", "not known")


@dataclass(frozen=True)
class ContainerEngine:
    """An engine that answers: its program's name."""

    name: str

    def ask(self, *words: str, timeout_s: float | None = ASK_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Return what the engine's command line answers, whatever its exit code.

        Raises:
            UnsupportedMachine: It does not answer in time.
        """
        try:
            return subprocess.run([self.name, *words], capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise UnsupportedMachine(
                f"ask {self.name} for `{' '.join(words[:2])}`",
                found=f"no answer within {timeout_s:g} s",
                hint=f"try `{self.name} info` by hand, then restart the engine",
            ) from error

    def has_image(self, image: str) -> bool:
        """Return whether the image is on this machine."""
        return self.ask("image", "inspect", image).returncode == 0

    def digest(self, image: str) -> str:
        """Return the registry's digest of an image, or its own id if it was made here."""
        template = "{{if .RepoDigests}}{{index .RepoDigests 0}}{{else}}{{.Id}}{{end}}"
        return self.ask("image", "inspect", "--format", template, image).stdout.strip()

    def label(self, image: str, name: str) -> str:
        """Return a label of an image, empty without it."""
        return self.ask("image", "inspect", "--format", f'{{{{index .Config.Labels "{name}"}}}}', image).stdout.strip()

    def free_bytes(self) -> int | None:
        """Return the free space where images go, None if that is on another machine."""
        template = "{{.DockerRootDir}}" if self.name == "docker" else "{{.Store.GraphRoot}}"
        folder = Path(self.ask("info", "--format", template).stdout.strip() or "/nonexistent")
        return shutil.disk_usage(folder).free if folder.is_dir() else None


def find_engine(choice: str | None = None) -> ContainerEngine:
    """Return the engine that was asked for, or the first of docker and podman that answers.

    Args:
        choice: `docker` or `podman`; by default what ENSEMBLEKIT_ENGINE says.

    Raises:
        ParameterError: The choice is neither.
        UnsupportedMachine: No engine is installed, or none of them runs.
    """
    choice = choice or os.environ.get(ENGINE_VARIABLE)
    if choice and choice not in ENGINES:
        raise ParameterError(
            f"use the container engine {choice!r}",
            found="the kit drives docker and podman",
            hint=f"set {ENGINE_VARIABLE} to docker or podman, or leave it out",
        )
    names = [choice] if choice else list(ENGINES)
    installed = [name for name in names if shutil.which(name)]
    if not installed:
        raise UnsupportedMachine(
            "find a container engine",
            found=f"no {' and no '.join(names)} on the PATH",
            hint="install one (Debian, Ubuntu: `sudo apt install podman`), or use PROVIDER 'embedded'",
        )
    answers = dict[str, str]()
    for name in installed:
        answer = ContainerEngine(name).ask("info")
        if answer.returncode == 0:
            return ContainerEngine(name)
        answers[name] = (answer.stderr.strip().splitlines() or ["no message"])[-1]
    raise UnsupportedMachine(
        "reach the container engine",
        found="; ".join(f"{name} does not answer: {text}" for name, text in answers.items()),
        hint="start it (`sudo systemctl start docker`), see that you may use it "
        "(`sudo usermod -aG docker $USER`), or use PROVIDER 'embedded'",
    )


def ensure_image(
    engine: ContainerEngine, image: str, size_gb: float, *, progress: Callable[[str], None] | None = None
) -> None:
    """Pull an image unless it is here; the disk it needs is asked for first.

    Args:
        engine: The engine.
        image: Its name and tag.
        size_gb: Size of the unpacked image.
        progress: Called with each line of the pull.

    Raises:
        FetchError: No network, no login, no such tag, too little disk, or not an image that can be pulled.
    """
    if engine.has_image(image):
        return
    if image.startswith("localhost/"):
        raise FetchError(
            f"use the image {image}",
            found="it has not been built on this machine",
            hint="`ensemblekit workaround build` makes base-plus-vllm; custom-build comes from upstream's build.py",
        )
    _require_disk(engine, image, size_gb)
    process = subprocess.Popen(
        [engine.name, "pull", image], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = list[str]()
    for line in process.stdout or ():
        lines.append(line.strip())
        if progress:
            progress(line.strip())
    if process.wait() != 0:
        raise _pull_error(engine, image, lines)


def _require_disk(engine: ContainerEngine, image: str, size_gb: float) -> None:
    free, needed = engine.free_bytes(), size_gb * UNPACK_FACTOR * GB
    if free is not None and free < needed:
        raise FetchError(
            f"pull {image}",
            found=f"{free / GB:.1f} GB free where {engine.name} keeps images; it needs {needed / GB:.1f} GB",
            hint=f"free some with `{engine.name} system prune`, or use PROVIDER 'embedded', which needs 1 GB",
        )


def _pull_error(engine: ContainerEngine, image: str, lines: list[str]) -> KitError:
    text = "\n".join(lines).lower()
    if any(word.lower() in text for word in NO_NETWORK):
        hint = "is the registry reachable from here? Behind a proxy, the engine has its own proxy setting"
    elif any(word in text for word in NO_TAG):
        hint = "is the tag right? `ensemblekit releases` lists the releases; ENSEMBLEKIT_IMAGES names the repository"
    elif any(word in text for word in NO_LOGIN):
        hint = f"log in first: `{engine.name} login {image.split('/')[0]}`"
    elif "no space left" in text:
        hint = f"free some disk with `{engine.name} system prune`"
    else:
        hint = f"try `{engine.name} pull {image}` by hand"
    return FetchError(f"pull {image}", found=(lines or ["no message"])[-1], hint=hint)
