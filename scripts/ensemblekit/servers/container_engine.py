# SPDX-License-Identifier: Apache-2.0
"""The container engine, docker or podman, and its images.

The engine is found by itself. Images are pulled with progress and after a look at the disk. Each refusal is one clear
error.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ensemblekit.errors import FetchError, KitError, ParameterError, UnsupportedMachine
from ensemblekit.faults.catalogue import recognise
from ensemblekit.faults.container import REGISTRY_FAULTS
from ensemblekit.faults.log import last_line
from ensemblekit.paths import current_run_dir

if TYPE_CHECKING:
    from python_on_whales import DockerClient, Image

__all__ = [
    "ENGINES",
    "ENGINE_VARIABLE",
    "GB",
    "ContainerEngine",
    "choose_engine",
    "ensure_image",
    "find_engine",
    "follow",
    "log_of",
    "no_progress",
    "require_disk",
]

ENGINE_VARIABLE = "ENSEMBLEKIT_ENGINE"
ENGINES = ("docker", "podman")
ASK_TIMEOUT_S = 30.0  # an engine that answers does so in a second
UNPACK_FACTOR = 1.3  # a layer's archive and its files are on the disk at once while a pull unpacks
GB = 10**9
TICK_S = 0.5
HINT_RESTRICTED = "env/containers/README.md tells what podman needs without systemd"


@dataclass(frozen=True)
class ContainerEngine:
    """An engine that answers: its program's name."""

    name: str

    def ask(self, *words: str, timeout_s: float | None = ASK_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Return what the engine's command line answers, whatever its exit code.

        For questions that an engine in trouble leaves without an answer: python-on-whales waits without limit.

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

    @property
    def client(self) -> "DockerClient":
        """The engine's images, containers and volumes as Python objects."""
        from python_on_whales import DockerClient  # a second to import, and only containers need it

        return DockerClient(client_call=[self.name], client_type="docker" if self.name == "docker" else "podman")

    def has_image(self, image: str) -> bool:
        """Return whether the image is on this machine.

        Raises:
            ParameterError: The engine takes that for no image's name.
        """
        from python_on_whales.exceptions import DockerException

        try:
            return self.client.image.exists(image)
        except DockerException as error:
            said = (error.stderr or "").strip().splitlines() or ["no message"]
            raise ParameterError(
                f"look for the image {image[:80]}", found=said[-1][:200], hint="check the image's name"
            ) from error

    def inspect(self, image: str) -> "Image":
        """Return an image that is on this machine.

        Raises:
            python_on_whales.exceptions.NoSuchImage: It is not.
        """
        return self.client.image.inspect(image)

    def digest(self, image: str) -> str:
        """Return the registry's digest of an image (`name@sha256:...`), or its own id if it was made here."""
        found = self.inspect(image)
        return next(iter(found.repo_digests), "") or found.id

    def label(self, image: str, name: str) -> str:
        """Return a label of an image, empty without it."""
        config = self.inspect(image).config
        return ((config.labels if config else None) or {}).get(name, "")

    def storage(self) -> Path | None:
        """Return the folder where images go, None if that is on another machine."""
        template = "{{.DockerRootDir}}" if self.name == "docker" else "{{.Store.GraphRoot}}"
        folder = Path(self.ask("info", "--format", template).stdout.strip() or "/nonexistent")
        return folder if folder.is_dir() else None


def choose_engine(name: str | None) -> None:
    """Let this process and its kernels use one engine, as the command line's option says; None leaves it open.

    Raises:
        ParameterError: It is neither docker nor podman.
    """
    if name is not None:
        _checked(name)
        os.environ[ENGINE_VARIABLE] = name


def _checked(name: str) -> str:
    if name not in ENGINES:
        raise ParameterError(
            f"use the container engine {name!r}",
            found="the kit drives docker and podman",
            hint=f"say `--container-engine podman`, set {ENGINE_VARIABLE} to docker or podman, or leave both out",
        )
    return name


def find_engine(choice: str | None = None) -> ContainerEngine:
    """Return the engine that was asked for, or the first of docker and podman that answers.

    Args:
        choice: `docker` or `podman`; by default what ENSEMBLEKIT_ENGINE says.

    Raises:
        ParameterError: The choice is neither.
        UnsupportedMachine: No engine is installed, or none of them runs.
    """
    choice = choice or os.environ.get(ENGINE_VARIABLE)
    names = [_checked(choice)] if choice else list(ENGINES)
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
        hint=_start_hint(next(iter(answers))),
    )


def _start_hint(name: str) -> str:
    if name == "podman":
        return f"try `podman info` by hand ({HINT_RESTRICTED}), or use PROVIDER 'embedded'"
    return (
        "start it (`sudo systemctl start docker`), see that you may use it (`sudo usermod -aG docker $USER`), "
        "or use PROVIDER 'embedded'"
    )


def no_progress(_text: str) -> None:
    """Show nothing."""


def ensure_image(
    engine: ContainerEngine, image: str, size_gb: float, *, progress: Callable[[str], None] = no_progress
) -> None:
    """Pull an image unless it is here; the disk it needs is asked for first.

    Args:
        engine: The engine.
        image: Its name and tag.
        size_gb: Size of the unpacked image, at most.
        progress: Called twice a second with how far the pull is.

    Raises:
        FetchError: No network, no login, no such tag, too little disk, or not an image that can be pulled.
    """
    if engine.has_image(image):
        return
    if image.startswith("localhost/"):
        raise FetchError(f"use the image {image}", found="it is not on this machine", hint=_local_hint(image))
    require_disk(engine, f"pull {image}", size_gb * UNPACK_FACTOR)
    log, storage = log_of("pull", image), engine.storage()
    before = shutil.disk_usage(storage).used if storage else 0

    def tell(line: str) -> None:
        done = shutil.disk_usage(storage).used - before if storage else 0
        progress(f"{max(0, done) / GB:.1f} of about {size_gb:g} GB: {line}" if storage else line)

    if follow([engine.name, "pull", image], log, tell) != 0:
        raise _pull_error(engine, image, log)


def _local_hint(image: str) -> str:
    if image.endswith("-base-plus-vllm"):
        return "`ensemblekit workaround build` makes it"
    if image.endswith("-custom-build"):
        return "it comes from upstream's build.py: `ensemblekit build-plan` has the command lines"
    return "an image under localhost/ is built, not pulled: build it, or tag yours with this name"


def require_disk(engine: ContainerEngine, attempted: str, needed_gb: float) -> None:
    """Raise if there is less free disk than needed where the engine keeps images.

    Raises:
        FetchError: There is less.
    """
    storage = engine.storage()
    free = shutil.disk_usage(storage).free if storage else None
    if free is not None and free < needed_gb * GB:
        raise FetchError(
            attempted,
            found=f"{free / GB:.1f} GB free where {engine.name} keeps images; it needs {needed_gb:.1f} GB",
            hint=f"make room, for example with `{engine.name} system prune`, or use PROVIDER 'embedded'",
        )


def log_of(action: str, image: str) -> Path:
    """Return the log of a pull or a build, under the run's folder."""
    folder = current_run_dir() / "containers"
    folder.mkdir(exist_ok=True)
    return folder / f"{action}-{image.replace('/', '-').replace(':', '-')}.log"


def follow(command: Sequence[str], log: Path, on_line: Callable[[str], None]) -> int:
    """Run a command with its output in a log, tell its last line twice a second, and return its exit code.

    Raises:
        OSError: The command cannot be started, or the log not be written.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        while True:
            try:
                return process.wait(TICK_S)
            except subprocess.TimeoutExpired:
                on_line(last_line(log))
    finally:
        if process.poll() is None:  # an interrupt: the engine must not go on pulling for nobody
            process.terminate()
            process.wait()


def _pull_error(engine: ContainerEngine, image: str, log: Path) -> KitError:
    known = recognise(log.read_text(errors="replace"), among=REGISTRY_FAULTS)
    hint = known.hint.format(engine=engine.name, registry=image.split("/")[0]) if known else ""
    return FetchError(
        f"pull {image}",
        found=last_line(log) or "no message",
        hint=hint or f"try `{engine.name} pull {image}` by hand",
        log_path=log,
    )
