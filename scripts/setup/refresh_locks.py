# SPDX-License-Identifier: Apache-2.0
"""Refresh locks under env/locks: resolve what their headers name, and note the hashes of all files that fit.

    scripts/lock [--upgrade] [LAYER ...]          base lab cpu cuda dev uv hub; all of them if none is named

Without --upgrade a version changes only where it must. uv resolves, because pip cannot leave out what vLLM names
and this kit never imports, nor keep numpy below the 2 that others ask for; pip installs. Index: pip's own setting.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from setup.commands import Log
from setup.index import index_urls, is_for_this_system, list_files, setting
from setup.locks import LOCKS, lock_notes, lock_pins, project
from setup.messages import SetupError, say
from setup.standalone import uv_program

# what a layer stands on: their pins hold for it, whatever its packages ask for
BELOW = {
    "base": [],
    "lab": ["base"],
    "cpu": ["base", "lab"],
    "cuda": ["base", "lab"],
    "dev": ["base", "lab"],
    "uv": [],
    "hub": ["base", "lab"],
}
OVERRIDING = ("cpu", "cuda")
PYTHON = {"cuda": "3.12"}  # the others: the lowest that the kit runs on, Debian 12's own
LOWEST_PYTHON = "3.11.2"
PLATFORM = "x86_64-manylinux_2_35"
AT_ONCE = 8


def main(words: list) -> int:
    """Refresh the locks that are named."""
    layers = [word for word in words if word in BELOW]
    if set(words) - set(layers) - {"--upgrade"}:
        say(__doc__)
        return 0 if set(words) & {"-h", "--help"} else 2
    try:
        for layer in layers or list(BELOW):
            before = _versions(layer)
            refresh(layer, "--upgrade" in words)
            after = _versions(layer)
            moved = [
                "%s %s" % (name, after.get(name, "gone")) for name in sorted(before) if before[name] != after.get(name)
            ]
            moved += ["%s %s (new)" % (name, after[name]) for name in sorted(set(after) - set(before))]
            say("%-5s %3d packages; %s" % (layer, len(after), ", ".join(moved) or "the same versions"))
    except SetupError as error:
        say(str(error))
        return 1
    return 0


def _versions(layer: str) -> dict:
    return dict(pin.split()[0].split("==") for pin in lock_pins(layer))


def refresh(layer: str, upgrade: bool) -> None:
    """Write a layer's lock anew below its header."""
    pins = resolve(layer, upgrade)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        blocks = list(pool.map(with_hashes, pins))
    path = os.path.join(LOCKS, layer + ".txt")
    with open(path) as file:
        header = [line for line in file if line.startswith("#")]
    with open(path + ".new", "w") as file:
        file.write("".join(header + blocks))
    os.replace(path + ".new", path)


def resolve(layer: str, upgrade: bool) -> list:
    """Return the exact versions of everything that a layer adds to those below it."""
    notes = lock_notes(layer)
    below = {name: version for other in BELOW[layer] for name, version in _versions(other).items()}
    kept = ["%s==%s" % pin for pin in below.items()]
    # an override wins over what vLLM asks for, but drops extras such as JupyterLab's jsonschema[format-nongpl]
    constraints, kept = ([], kept) if layer in OVERRIDING else (kept, [])
    overrides = kept + notes["torch"] + notes["held"] + [name + "; python_version < '3'" for name in notes["absent"]]
    wanted = notes["Made from"] + [name for other in BELOW[layer] for name in lock_notes(other)["Made from"]]
    log = Log()
    files = {
        name: os.path.join(log.folder, "%s-%s.txt" % (layer, name))
        for name in ("wanted", "overrides", "constraints", "result")
    }
    _write(files["wanted"], wanted + notes["held"])
    _write(files["overrides"], overrides)
    _write(files["constraints"], constraints)
    if not upgrade:  # uv prefers the versions that it finds in the result of before
        _write(files["result"], ["%s==%s" % pin for pin in _versions(layer).items()])
    command = [uv_program(log), "pip", "compile", files["wanted"], "--override", files["overrides"], "--no-config"]
    command += [
        "--constraint",
        files["constraints"],
        "--python-version",
        PYTHON.get(layer, LOWEST_PYTHON),
        "--python-platform",
        PLATFORM,
    ]
    command += [
        "--output-file",
        files["result"],
        "--no-header",
        "--no-annotate",
        "--no-strip-extras",
        "--default-index",
    ]
    environment = {"SSL_CERT_FILE": setting("cert")} if setting("cert") else {}
    log.run(command + [index_urls()[0]], "resolve " + layer, "the log says which requirements conflict", **environment)
    with open(files["result"]) as file:
        pins = [line.split(";")[0].strip() for line in file if "==" in line]
    not_here = set(below) | {project(pin) for pin in notes["torch"]}
    added = [pin.split("[")[0] + "==" + pin.split("==")[1] if "[" in pin else pin for pin in pins]
    return sorted((pin for pin in added if project(pin) not in not_here), key=project)


def _write(path: str, lines: list) -> None:
    with open(path, "w") as file:
        file.write("".join(line + "\n" for line in lines))


def with_hashes(pin: str) -> str:
    """Return a pin as the lock holds it: with the hash of each file of that version that fits."""
    name, version = pin.split("==")
    try:
        files = [one for one in list_files(name) if is_for_this_system(one.name, name, version)]
    except OSError as error:
        raise SetupError("read the hashes of " + pin, str(error), "is the package index reachable?") from None
    hashes = sorted({one.sha256 for one in files if one.sha256})
    if not hashes:
        raise SetupError("read the hashes of " + pin, "the index lists none", "name another index in PIP_INDEX_URL")
    return " \\\n".join([pin] + ["    --hash=sha256:" + one for one in hashes]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
