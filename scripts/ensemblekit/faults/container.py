# SPDX-License-Identifier: Apache-2.0
"""C5xx: what a container engine, a registry or a build says when it refuses. Only who ran one of them asks for these.

A fix may hold the fields {engine} and {registry}, which the caller knows.
"""

from functools import partial

from ensemblekit.faults.fault import Doc, Fault

__all__ = ["BUILD_FAULTS", "CODE_FAULTS", "ENGINE_REFUSALS", "KILLED", "REFUSED", "REGISTRY_FAULTS"]

# podman begins with "Error: ", docker with "docker: Error response from daemon: "
_SAYS = r"^(?:docker: |Error(?: response from daemon)?: |time=)(?i:.*"

KILLED = 137  # 128 + SIGKILL
REFUSED = (125, 126, 127)  # of the engine itself, of the runtime, no such program in the image

# faults, by the page that documents them
_podman = partial(Fault, link=Doc.PODMAN)
ENGINE_REFUSALS = (
    Fault(
        "C501",
        "the container engine finds no GPU",
        pattern=_SAYS + r"(?:no such device|cdi|nvidia|could not select device driver))",
        cause="The engine was asked for a GPU and does not know how to give one.",
        fix="is NVIDIA's container toolkit installed and set up for this engine?",
        link=Doc.TOOLKIT,
    ),
    _podman(
        "C502",
        "the host refuses the container's limits",
        pattern=_SAYS + r"(?:rlimit))",
        cause="The engine asks for more open files or processes than this user may have.",
        fix="lower the limits, for example ENSEMBLEKIT_CONTAINER_ARGS='--ulimit=nofile=1024 --ulimit=nproc=1024'",
    ),
    _podman(
        "C503",
        "the container engine cannot publish ports",
        pattern=_SAYS + r"(?:netavark|cni|iptables|nftables|bridge|aardvark))",
        cause="The host lacks what the engine needs for a network of its own.",
        fix="this host's engine cannot publish ports: set ENSEMBLEKIT_CONTAINER_NETWORK=host",
    ),
    _podman(
        "C504",
        "the container engine wants systemd",
        pattern=_SAYS + r"(?:cgroup|systemd|dbus))",
        cause="The engine is set up for a host that runs systemd.",
        fix="env/containers/README.md tells what podman needs without systemd",
    ),
    Fault(
        "C505",
        "a port of the container is in use",
        pattern=_SAYS + r"(?:address already in use|port is already allocated))",
        cause="Another process or container listens on a port that was to be published.",
        fix="stop what listens there, or leave the port out",
        link=Doc.SERVER_OPTIONS,
    ),
)
# what an exit code alone says
CODE_FAULTS = (
    _podman(
        "C506",
        "the container engine refused to run the container",
        cause="The engine, its runtime or the image did not let it start.",
        fix="the engine itself refused to run the container; the log's last line says why",
    ),
    _podman(
        "C507",
        "the container was killed",
        cause="Somebody, or the kernel for want of memory, ended it with SIGKILL.",
        fix="the container was killed from outside, or for want of memory (`dmesg | tail`); start it again",
    ),
)
REGISTRY_FAULTS = (
    Fault(
        "C511",
        "the registry cannot be reached",
        pattern=r"(?i)no such host|could not resolve host|dial tcp|i/o timeout|connection refused|unreachable"
        r"|TLS handshake",
        cause="No network from here to the registry, or a proxy that the engine does not know.",
        fix="is the registry reachable from here? It could not be reached; behind a proxy, the engine has its own "
        "setting",
    ),
    Fault(
        "C512",
        "no such image or tag",
        pattern=r"(?i)manifest unknown|manifest for .* not found|repository .* not found|name (?:is )?not known"
        r"|tag .*not found",
        cause="The registry has no image of this name and tag.",
        fix="is the tag right? `ensemblekit releases` lists the releases; ENSEMBLEKIT_IMAGES names the repository",
    ),
    Fault(
        "C513",
        "the registry asks for a login",
        pattern=r"(?i)toomanyrequests|unauthorized|authentication required|access (?:.{0,40})denied|denied:",
        cause="The registry gives this image only to those who have logged in, or has seen too many requests.",
        fix="log in first: `{engine} login {registry}`",
    ),
    Fault(
        "C514",
        "the disk is full",
        pattern=r"(?i)no space left",
        cause="Images, layers or a build's files have filled the disk.",
        fix="free some disk with `{engine} system prune`, then run the same command again",
    ),
)
BUILD_FAULTS = (
    Fault(
        "C521",
        "the compiler was killed for want of memory",
        pattern=r"Killed signal terminated|: Killed$|signal 9\b",
        cause="Too many compilers ran at once for this machine's memory.",
        fix="the compiler was killed for want of memory: run the same command with fewer --jobs",
    ),
    Fault(
        "C522",
        "docker's daemon does not run",
        pattern=r"Cannot connect to the Docker daemon",
        cause="The build asks docker, and its daemon is not there or may not be used.",
        fix="`sudo systemctl start docker`, then run the same command again",
    ),
    Fault(
        "C523",
        "upstream's branch of this release cannot be fetched",
        pattern=r"Remote branch \S+ not found",
        cause="The repository that was cloned has no branch of this name.",
        fix="see that the release's branch can be fetched, or give a checkout with --source",
    ),
    Fault(
        "C524",
        "what an earlier line made is gone",
        pattern=r"(?i)No such (?:container|image)",
        cause="A container or image of an earlier line was removed.",
        fix="what an earlier line made is gone: begin anew with --fresh",
    ),
    *REGISTRY_FAULTS,
)
