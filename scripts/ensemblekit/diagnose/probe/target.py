# SPDX-License-Identifier: Apache-2.0
"""What `TARGET` means: a release and flavour, files on disk, an image, or the URL of a running server."""

import os
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ensemblekit.diagnose.probe.files import find_server, read_image, read_server
from ensemblekit.diagnose.probe.start import (
    PROBE_MODEL,
    PROBE_TIMEOUT_S,
    ProbeAnswer,
    answer_of,
    probe_binary,
    write_repository,
)
from ensemblekit.errors import ParameterError
from ensemblekit.paths import temporary_dir
from ensemblekit.releases import (
    FLAVOURS,
    Flavour,
    Release,
    documented_note,
    get_release,
    has_ensembles,
    known_release,
    list_releases,
    release_of_image,
)
from ensemblekit.servers.embedded import SERVER, EmbeddedInstallation, check_machine, server_tree

if TYPE_CHECKING:
    from ensemblekit.servers.process import Installation

__all__ = ["Kind", "kind_of", "probe_installation", "probe_target", "release_of"]

Kind = Literal["release", "disk", "image", "url"]
_RELEASE = re.compile(r"^(\d\d\.\d\d)(?:/([\w-]+))?$")
_URL = re.compile(r"^https?://|^(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}/?$")
_IMAGE = re.compile(r"^[a-z0-9][\w.-]*(:\d+)?(/[\w.-]+)*(:[\w.-]+|@sha256:[0-9a-f]{64})?$")


def kind_of(target: str) -> Kind:
    """Return what a target is; what exists on disk is meant as that.

    Raises:
        ParameterError: It is none of the four.

    >>> kind_of("24.08/vllm-image"), kind_of("127.0.0.1:8000"), kind_of("localhost/x/tritonserver:24.08")
    ('release', 'url', 'image')
    """
    if _RELEASE.match(target):
        return "release"
    if _URL.match(target):
        return "url"
    if target.startswith(("/", ".", "~")) or (target and os.path.lexists(target)):
        return "disk"
    if _IMAGE.match(target):
        return "image"
    raise ParameterError(
        f"probe {target!r}",
        found="no release/flavour, no path, no image name and no URL",
        hint="for example 24.08/vllm-image, /opt/tritonserver, 127.0.0.1:8000 or "
        "nvcr.io/nvidia/tritonserver:24.08-vllm-python-py3",
    )


def probe_target(target: str, *, static: bool = False, allow_load: bool = False) -> ProbeAnswer:
    """Return whether the target knows ensembles.

    Args:
        target: See `kind_of`.
        static: Read the core library instead of starting the server.
        allow_load: Let a running server load a throw-away ensemble.

    Raises:
        KitError: There is no such server, or it could not be started or asked.
    """
    answer = _probe(target, kind_of(target), static=static, allow_load=allow_load)
    note = documented_note(release_of_image(target))
    return replace(answer, evidence=(*answer.evidence, note)) if note else answer


def _probe(target: str, kind: Kind, *, static: bool, allow_load: bool) -> ProbeAnswer:
    if allow_load and kind != "url":
        raise ParameterError(
            f"probe {target} with --allow-load", found="a server that is started for it anyway", hint="leave it out"
        )
    if static and kind == "url":
        raise ParameterError(
            f"read the library of the server at {target}", found="a URL", hint="--static is for files and images"
        )
    if kind == "url":
        from ensemblekit.diagnose.probe.running import ask_server

        return ask_server(target, allow_load=allow_load)
    if kind == "image" and static:
        return read_image(target)
    with tempfile.TemporaryDirectory(prefix="ensemblekit-probe-", dir=temporary_dir()) as folder:
        if kind == "image":
            return _probe_image(target, Path(folder))
        path = _files_of_release(target) if kind == "release" else Path(target).expanduser()
        server = find_server(path, run=not static)
        if static:
            return read_server(target, server)
        return probe_binary(server.binary, Path(folder), environment=server.environment, target=target)


def release_of(target: str) -> tuple[Release, Flavour]:
    """Return what `release/flavour` means; the flavour is `vllm-image` if it is left out.

    Raises:
        ParameterError: There is no such release or flavour.
    """
    name, _, word = target.partition("/")
    if name not in (known := [row.name for row in list_releases()]):
        raise ParameterError(
            f"use {target}",
            found=documented_note(name) or f"no release {name} in the kit's table",
            hint=f"it runs {', '.join(known)}; of another release give the server's files, its image or its URL",
        )
    for flavour in FLAVOURS:
        if flavour == (word or FLAVOURS[0]):
            return get_release(name), flavour
    raise ParameterError(f"use {target}", found=f"no flavour {word!r}", hint=f"the flavours are {', '.join(FLAVOURS)}")


def _files_of_release(target: str) -> Path:
    release, flavour = release_of(target)
    check_machine()
    return server_tree(release, ensembles=has_ensembles(release, flavour)) / SERVER


def probe_installation(installation: "Installation", folder: Path, target: str = "") -> ProbeAnswer:
    """Start a server on one ensemble of an absent model, ask it to load that, and stop it.

    Raises:
        ServerError: It did not start.
        RequestError: It did not answer.
    """
    if isinstance(installation, EmbeddedInstallation):
        return probe_binary(installation.binary, folder, environment=installation.environment, target=target)
    from ensemblekit.clients.http import load_model
    from ensemblekit.servers.process import ServerOptions, TritonServer

    begin = time.monotonic()
    server = TritonServer(installation, write_repository(folder), folder, ServerOptions(explicit=True))
    try:
        server.start(PROBE_TIMEOUT_S)
        answer = load_model(server, PROBE_MODEL)
        elapsed = time.monotonic() - begin
    finally:
        server.stop()
    return answer_of(target or installation.image, answer.status, answer.body.strip(), server.log_path, elapsed)


def _probe_image(image: str, folder: Path) -> ProbeAnswer:
    from ensemblekit.servers.container import install_container

    # the release gives the size alone: an image may hold any
    release = known_release(release_of_image(image) or list_releases()[0].name)
    installation = install_container(release, "vllm-image", "probe", image=image)
    return probe_installation(installation, folder, image)
