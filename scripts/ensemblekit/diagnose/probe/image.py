# SPDX-License-Identifier: Apache-2.0
"""A server in an image: started in a container, or its core library copied out and read."""

import tempfile
import time
from pathlib import Path

from ensemblekit.diagnose.probe.files import reads_as_ensembles
from ensemblekit.diagnose.probe.installation import probe_ensembles
from ensemblekit.diagnose.probe.result import FIX, ProbeAnswer, from_probe
from ensemblekit.errors import FetchError
from ensemblekit.releases import default_release, get_release
from ensemblekit.servers.container import install_container
from ensemblekit.servers.container_engine import ContainerEngine, find_engine

__all__ = ["probe_image", "read_image"]

# where the core library lies: in NVIDIA's images and those of build.py, and in images made from the wheel
FOLDERS = ("/opt/tritonserver/lib", "/nvidia_pytriton.libs")
COPY_TIMEOUT_S = 120.0


def probe_image(image: str) -> ProbeAnswer:
    """Return whether the server in an image knows ensembles; a container is started and removed.

    Raises:
        UnsupportedMachine: There is no container engine.
        FetchError: The image cannot be had.
        ServerError: The server in it did not start.
    """
    with tempfile.TemporaryDirectory(prefix="ensemblekit-probe-") as folder:
        # the release only names the row for an error's text: an image may hold any
        installation = install_container(get_release(default_release()), "vllm-image", "probe", image=image)
        return from_probe(image, probe_ensembles(installation, Path(folder)))


def read_image(image: str) -> ProbeAnswer:
    """Return what the core library in an image says; nothing in the image is run.

    Raises:
        UnsupportedMachine: There is no container engine.
        FetchError: The image is not on this machine, or holds no core library where NVIDIA's do.
    """
    engine = find_engine()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ensemblekit-probe-") as folder:
        core = _copy_core(engine, image, Path(folder))
        verdict, evidence = reads_as_ensembles(core)
    return ProbeAnswer(
        image, verdict, "library read", evidence, time.monotonic() - begin, FIX if verdict is False else ""
    )


def _copy_core(engine: ContainerEngine, image: str, folder: Path) -> Path:
    created = engine.ask("create", "--pull=never", image, "tritonserver")  # never started
    if created.returncode != 0:
        raise FetchError(
            f"read the image {image}",
            found=(created.stderr.strip().splitlines() or ["no message"])[-1],
            hint=f"`{engine.name} pull {image}` first",
        )
    container = created.stdout.strip().splitlines()[-1]
    try:
        for place in FOLDERS:
            engine.ask("cp", f"{container}:{place}/.", str(folder), timeout_s=COPY_TIMEOUT_S)
            if found := sorted(file for file in folder.glob("libtritonserver*.so*") if file.is_file()):
                return found[0]
    finally:
        engine.ask("rm", "-f", container)
    raise FetchError(
        f"read the image {image}",
        found=f"no libtritonserver in {' or '.join(FOLDERS)} of it",
        hint="leave --static out: the server itself is then asked",
    )
