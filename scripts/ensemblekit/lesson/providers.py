# SPDX-License-Identifier: Apache-2.0
"""Which form of a lesson runs here: with containers where they can be had, else embedded, and one line says so."""

from ensemblekit.errors import UnsupportedMachine
from ensemblekit.lesson.show import StatusLine
from ensemblekit.releases import Flavour, get_release
from ensemblekit.servers.container import image_of
from ensemblekit.servers.container_engine import find_engine
from ensemblekit.workarounds.base_image import build_image

__all__ = ["prepare_base_plus_vllm", "provider_or_embedded", "usable_provider"]

EMBEDDED_FORM = "This page runs its embedded form: the same server, out of its PyPI wheel."


def provider_or_embedded(provider: str) -> str:
    """Return PROVIDER as it is; without a container engine `embedded`, with one line that says so.

    Raises:
        ParameterError: The engine that is asked for is unknown.
    """
    if provider == "container":
        try:
            find_engine()
        except UnsupportedMachine as error:
            print(f"No container engine: {error.found}. {EMBEDDED_FORM}")
            return "embedded"
    return provider


def usable_provider(provider: str, release: str, flavour: Flavour) -> str:
    """Return PROVIDER as it is; `embedded`, with one line that says so, without an engine or the image built here.

    An image of NVIDIA that is not here yet is no reason: it is pulled.

    Raises:
        ParameterError: The release, or the engine that is asked for, is unknown.
    """
    provider, image = provider_or_embedded(provider), image_of(get_release(release), flavour)
    if provider == "container" and image.startswith("localhost/") and not find_engine().has_image(image):
        print(f"The image {image} has not been built on this machine. {EMBEDDED_FORM}")
        return "embedded"
    return provider


def prepare_base_plus_vllm(provider: str, release: str, *, engine: str) -> str:
    """Return PROVIDER for a server with workaround 1; with containers its image is built first, unless it is here.

    With the Python stand-in for `llm`, an image without vLLM is enough: nothing is downloaded into it.

    Raises:
        ParameterError: The release is unknown.
        KitError: The image cannot be built; see `ensemblekit.workarounds.base_image.build_image`.
    """
    provider, row = provider_or_embedded(provider), get_release(release)
    if provider == "container" and not find_engine().has_image(image_of(row, "base-plus-vllm")):
        with StatusLine("building the image") as line:
            if engine == "stand-in":
                built = build_image(row, backend="kit", vllm="none", progress=line.tick)
            else:
                built = build_image(row, progress=line.tick)
        print(f"built {built.image} in {built.seconds:.0f} s")
    return provider
