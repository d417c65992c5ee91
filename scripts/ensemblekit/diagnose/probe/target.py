# SPDX-License-Identifier: Apache-2.0
"""What `TARGET` means: a release and flavour, files on disk, an image, or the URL of a running server."""

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Literal

from ensemblekit.diagnose.probe.binary import probe_binary
from ensemblekit.diagnose.probe.files import ServerOnDisk, find_server, reads_as_ensembles, require_run_bit
from ensemblekit.diagnose.probe.result import FIX, ProbeAnswer, from_probe
from ensemblekit.errors import ParameterError, UnsupportedMachine

__all__ = ["Kind", "kind_of", "probe_target", "server_of_release"]

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
    kind = kind_of(target)
    if allow_load and kind != "url":
        raise ParameterError(
            f"probe {target} with --allow-load", found="a server that is started for it anyway", hint="leave it out"
        )
    if kind == "url":
        return _ask(target, static=static, allow_load=allow_load)
    if kind == "image":
        from ensemblekit.diagnose.probe.image import probe_image, read_image

        return read_image(target) if static else probe_image(target)
    server = server_of_release(target) if kind == "release" else find_server(Path(target).expanduser())
    return _read(target, server) if static else _start(target, server)


def _ask(target: str, *, static: bool, allow_load: bool) -> ProbeAnswer:
    from ensemblekit.diagnose.probe.running import ask_server

    if static:
        raise ParameterError(
            f"read the library of the server at {target}", found="a URL", hint="--static is for files and images"
        )
    return ask_server(target, allow_load=allow_load)


def server_of_release(target: str) -> ServerOnDisk:
    """Return the server of `release/flavour`; the flavour is `vllm-image` if it is left out.

    Raises:
        ParameterError: There is no such release or flavour.
        FetchError: Its wheel cannot be fetched.
        UnsupportedMachine: It cannot run here.
    """
    from ensemblekit.releases import FLAVOURS, get_release, has_ensembles, list_releases
    from ensemblekit.servers.embedded import SERVER, check_machine, server_tree

    match = _RELEASE.match(target)
    name, flavour = (match[1], match[2] or FLAVOURS[0]) if match else (target, FLAVOURS[0])
    if name not in (known := [row.name for row in list_releases()]):
        raise ParameterError(
            f"probe {target}",
            found=f"no release {name} in the kit's table",
            hint=f"it has {', '.join(known)}; of another release give the server's files, its image or its URL",
        )
    release = get_release(name)
    if flavour not in FLAVOURS:
        raise ParameterError(
            f"probe {target}", found=f"no flavour {flavour!r}", hint=f"the flavours are {', '.join(FLAVOURS)}"
        )
    check_machine()
    tree = server_tree(release, ensembles=has_ensembles(release, flavour))
    return find_server(tree / SERVER)


def _start(target: str, server: ServerOnDisk) -> ProbeAnswer:
    require_run_bit(server.binary)
    with tempfile.TemporaryDirectory(prefix="ensemblekit-probe-") as folder:
        return from_probe(target, probe_binary(server.binary, Path(folder), environment=server.environment))


def _read(target: str, server: ServerOnDisk) -> ProbeAnswer:
    if server.core is None:
        raise UnsupportedMachine(
            f"read the core library of {target}",
            found=f"no libtritonserver beside {server.binary}",
            hint="leave --static out: the server itself is then asked",
        )
    begin = time.monotonic()
    verdict, evidence = reads_as_ensembles(server.core)
    return ProbeAnswer(
        target, verdict, "library read", evidence, time.monotonic() - begin, FIX if verdict is False else ""
    )
