# SPDX-License-Identifier: Apache-2.0
"""The environment: where it lives, whether it is whole, and making what is missing of it."""

import contextlib
import json
import os
import shutil
import sys
import time
from typing import Iterator

from setup import ENGINE_TEXT, PYTHONS, ROOT, VENV_VARIABLE
from setup.installer import Installer, torch_index
from setup.locks import BUNDLE, fingerprint, lock_notes, lock_pins, project, read_bundle, without_absent
from setup.machine import check_disk, check_driver, check_machine, gpus_hidden, has_gpu
from setup.messages import Log, Phase, SetupError, say
from setup.options import choose_engine, wanted_layers

STATE = "ensemblekit-setup.json"
PROGRAM = "ensemblekit"  # what the layer `package` puts there
OTHER_ENGINE = {"cpu": "cuda", "cuda": "cpu"}  # their builds of torch exclude each other


def venv_folder(engine: str, gpu: bool) -> str:
    """Return where the environment lives: `.venv`, or another for the engine that is not this machine's."""
    override = os.environ.get(VENV_VARIABLE)
    if override:
        return os.path.abspath(override)
    usual = "cuda" if gpu else "cpu"
    return os.path.join(ROOT, ".venv" if engine in ("base", usual) else ".venv-" + engine)


def read_state(folder: str) -> dict:
    """Return the environment's state file, {} where there is none; a package without its program does not count."""
    try:
        with open(os.path.join(folder, STATE)) as file:
            state = json.load(file)
    except (OSError, ValueError):
        return {}
    if not os.path.exists(os.path.join(folder, "bin", PROGRAM)):
        state.get("layers", {}).pop("package", None)
    return state


def write_state(folder: str, state: dict) -> None:
    """Write the state file so that it is there whole or not at all."""
    path = os.path.join(folder, STATE)
    with open(path + ".new", "w") as file:
        json.dump(state, file, indent=1)
    os.replace(path + ".new", path)


def is_usable(folder: str, state: dict) -> bool:
    """Return whether a whole environment of ours is there, made for this very place."""
    python = os.path.join(folder, "bin", "python")
    return state.get("ready") is True and state.get("folder") == folder and os.path.exists(python)


def is_quick(folder: str) -> bool:
    """Return whether a whole environment is there that has no engine."""
    state = read_state(folder)
    return is_usable(folder, state) and not set(OTHER_ENGINE) & set(state.get("layers", {}))


def missing_layers(state: dict, layers: list) -> list:
    """Return the layers that are not installed, or not as the files describe them now."""
    installed = state.get("layers", {})
    return [layer for layer in layers if installed.get(layer) != fingerprint(layer)]


@contextlib.contextmanager
def exclusive(folder: str) -> Iterator[None]:
    """Hold the set-up's lock. pip inherits it: if this process is killed, the next one waits for its pip."""
    import fcntl

    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with open(folder + ".lock", "w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            phase = Phase("waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
            phase.end("for the other set-up in this folder")
        yield


def set_up(options: dict) -> str:
    """Return the folder of an environment that holds what the options ask for; do only what is missing."""
    gpu = has_gpu()
    if options["as_it_is"] and is_quick(venv_folder("base", gpu)):
        options = dict(options, quick=True)  # `scripts/run` would add vLLM; Lab opens what is there
    engine = choose_engine(options, gpu and not gpus_hidden())
    layers = wanted_layers(engine, options)
    folder = os.path.realpath(sys.prefix) if options["here"] else venv_folder(engine, gpu)
    if _is_complete(folder, layers):
        return folder
    check_machine()
    check_driver(engine)
    began = time.monotonic()
    say("Setting up the %s in %s" % (ENGINE_TEXT[engine], os.path.relpath(folder)))
    with exclusive(folder if not options["here"] else os.path.join(ROOT, ".venv")):
        if _is_complete(folder, layers):
            say("Ready: the other set-up did it all.")
            return folder
        check_disk(folder, engine)
        log = Log()
        state = read_state(folder)
        if options["here"]:
            check_here()
        elif not is_usable(folder, state) or OTHER_ENGINE.get(engine) in state.get("layers", {}):
            from setup.pythons import find_python  # what reads indexes costs a tenth of a second to import

            make_venv(folder, find_python(gpu, log), log)
            state = {}
        if missing_layers(state, layers + ["package"]):
            present = [layer for layer in state.get("layers", {}) if layer != "package" and layer not in layers]
            install(folder, layers + present, state, log)
    say("Ready after %.0f s (pip's log: %s)" % (time.monotonic() - began, os.path.relpath(log.path)))
    return folder


def _is_complete(folder: str, layers: list) -> bool:
    state = read_state(folder)
    return is_usable(folder, state) and not missing_layers(state, layers + ["package"])


def check_here() -> None:
    """Refuse to install into a system Python, or one of the wrong version."""
    short = "%d.%d" % sys.version_info[:2]
    conda = os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
    if short not in PYTHONS or (sys.prefix == sys.base_prefix and not conda):
        raise SetupError(
            "install into this Python (--here)",
            "%s is Python %s and %s" % (sys.executable, short, "not a virtual or conda environment"),
            "activate an environment with Python 3.11 or 3.12 first, or leave --here out",
        )


def make_venv(folder: str, python: dict, log: Log) -> None:
    """Make an empty environment in place of a missing or half-made one."""
    phase = Phase("venv")
    remade = os.path.isdir(folder)
    if remade and os.listdir(folder) and not os.path.exists(os.path.join(folder, STATE)):
        raise SetupError(
            "make %s" % folder,
            "a folder of that name which this kit did not make",
            "move it away, or set %s to another folder" % VENV_VARIABLE,
        )
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, exist_ok=True)
    write_state(folder, {"ready": False})
    command = [python["path"], "-I", "-m", "venv", folder]
    log.run(command, "make a virtual environment", "sudo apt install python%s-venv" % python["short"])
    phase.end("%s with Python %s" % ("a half-made or outdated one remade" if remade else "made", python["version"]))


def install(folder: str, layers: list, state: dict, log: Log) -> None:
    """Install the layers that are missing, and this checkout's package."""
    write_state(folder, dict(state, ready=False))
    try:
        _install_missing(layers, state, Installer(folder, log))
    except SetupError:  # pip undoes what it cannot finish, so what was there is still whole
        write_state(folder, dict(state, ready=True, folder=folder))
        raise
    hashes = {layer: fingerprint(layer) for layer in layers + ["package"]}
    write_state(folder, dict(state, ready=True, folder=folder, layers=dict(state.get("layers", {}), **hashes)))


def _install_missing(layers: list, state: dict, installer: Installer) -> None:
    todo, bundle = missing_layers(state, layers), read_bundle()
    source = ["--no-index", "--find-links", os.path.join(BUNDLE, "wheels")] if bundle else []
    for layer in todo:
        for requirement in without_absent(bundle, lock_notes(layer)["torch"]):
            installer.install_torch(requirement, source or torch_index())
    pins = dict.fromkeys(pin for layer in todo for pin in without_absent(bundle, lock_pins(layer)))
    if pins:
        installer.install_locked(list(pins), source, "install the locked packages (%s)" % ", ".join(todo))
    if missing_layers(state, ["package"]):
        arguments = source + ["--no-build-isolation", "-e", ROOT]
        installer.install("ensemblekit", arguments, 1, "install this checkout's package")
    if bundle.get("host_packages"):  # after pip, which would try to replace what it finds there
        installer.see_also(bundle["host_packages"])
    verify(layers, installer)


def verify(layers: list, installer: Installer) -> None:
    """Let pip check that all requirements are met, except those that the locks leave out on purpose."""
    phase = Phase("check")
    absent = {name for layer in layers for name in lock_notes(layer)["absent"]}
    absent.update(read_bundle().get("left_out", []))
    ours = {project(pin) for layer in layers for pin in lock_pins(layer)}  # a host's own packages may disagree
    lines = [line for line in installer.unmet() if project(line) in ours]
    wrong = [line for line in lines if not any("requires %s, which is not installed" % name in line for name in absent)]
    if wrong:
        installer.log.note(["$ pip check"] + wrong)
        raise SetupError(
            "check the installed packages",
            "%d requirements are not met" % len(wrong),
            "delete %s and run again; if that does not help, report it with this text" % installer.folder,
            installer.log.path,
        )
    phase.end("all requirements are met")
