# SPDX-License-Identifier: Apache-2.0
"""Images: pulled with progress and after a look at the disk; one clear error for each way that can fail."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from ensemblekit.errors import FetchError, KitError
from ensemblekit.faults.catalogue import recognise
from ensemblekit.faults.container import REGISTRY_FAULTS
from ensemblekit.faults.log import last_line
from ensemblekit.paths import current_run_dir
from ensemblekit.servers.container_engine import ContainerEngine

__all__ = ["GB", "ensure_image", "follow", "log_of", "no_progress", "require_disk"]

UNPACK_FACTOR = 1.3  # a layer's archive and its files are on the disk at once while a pull unpacks
GB = 10**9
TICK_S = 0.5


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
