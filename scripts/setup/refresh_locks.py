# SPDX-License-Identifier: Apache-2.0
"""Refresh locks under env/locks: resolve what their headers name, and note the hashes of all files that fit.

    scripts/lock [--upgrade | --check] [LAYER ...]          base lab cpu cuda dev uv hub openai; all if none is named
    scripts/lock --licences                       only write env/dependencies.csv anew, as every other form does too

Without --upgrade a version changes only where it must; --check only asks the index whether it has the locked files.
uv resolves, because pip cannot leave out what vLLM names and this kit never imports, nor keep numpy below the 2 that
others ask for; pip installs. Index: pip's own setting.

env/dependencies.csv lists each package with its version, hashes and licence, which is what the installed packages say
of themselves. One that is not installed here keeps what the list said of the same version before, else it is not known.
"""

import csv
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, distributions

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from setup import ROOT
from setup.index import index_urls, is_for_this_system, list_files, locked_hashes
from setup.locks import LOCKS, lock_notes, lock_pins, project
from setup.messages import Log, SetupError, say
from setup.pythons import run_uv

# what a layer stands on: their pins hold for it, whatever its packages ask for
BELOW = {
    "base": [],
    "lab": ["base"],
    "cpu": ["base", "lab"],
    "cuda": ["base", "lab"],
    "dev": ["base", "lab"],
    "uv": [],
    "hub": ["base", "lab"],
    "openai": ["base"],
}
PYTHON = {"cuda": "3.12"}  # the others: the lowest that the kit runs on, Debian 12's own
LOWEST_PYTHON = "3.11.2"
PLATFORM = "x86_64-manylinux_2_35"
AT_ONCE = 8
LIST = os.path.join(ROOT, "env", "dependencies.csv")
HEAD = "# SPDX-License-Identifier: Apache-2.0; made from env/locks by `scripts/lock --licences`\n"
COLUMNS = ["name", "version", "layers", "licence", "sha256"]
NOT_SAID = "not said in the package's metadata"
NOT_KNOWN = "not known: not installed where this list was made"
LONGEST = 60  # letters; what is longer is the text of a licence, whose name the classifiers tell


def main(words: list) -> int:
    """Refresh or check the locks that are named."""
    if words == ["--licences"]:
        return _list_licences()
    layers = [word for word in words if word in BELOW]
    if set(words) - set(layers) - {"--upgrade", "--check"}:
        say(__doc__)
        return 0 if set(words) & {"-h", "--help"} else 2
    try:
        for layer in layers or list(BELOW):
            if "--check" in words:
                check(layer)
            else:
                before = _versions(layer)
                refresh(layer, "--upgrade" in words)
                say("%-5s %3d packages; %s" % (layer, len(_versions(layer)), _difference(before, _versions(layer))))
    except SetupError as error:
        say(str(error))
        return 1
    return _list_licences()


def _list_licences() -> int:
    unknown = write_list()
    say("env/dependencies.csv: %d packages, the licence of %d is not known" % (len(read_list()), unknown))
    return 0


def _difference(before: dict, after: dict) -> str:
    moved = ["%s %s" % (name, after.get(name, "gone")) for name in sorted(before) if before[name] != after.get(name)]
    moved += ["%s %s (new)" % (name, after[name]) for name in sorted(set(after) - set(before))]
    return ", ".join(moved) or "the same versions"


def check(layer: str) -> None:
    """Compare a layer's lock with the index.

    Raises:
        SetupError: A locked file is not there.
    """

    def lacking(pin: str) -> str:
        name = pin.split()[0]
        return "" if set(locked_hashes(pin)) <= set(hashes_on_index(name)) else name

    pins = lock_pins(layer)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = [name for name in pool.map(lacking, pins) if name]
    if wrong:
        hint = "`scripts/lock %s` notes those that it has" % layer
        raise SetupError("check the lock " + layer, "files that the index lacks: " + ", ".join(wrong), hint)
    say("%-5s %3d packages; the index has every locked file" % (layer, len(pins)))


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
    held_below = [project(one) for other in BELOW[layer] for one in lock_notes(other)["held"]]
    constraints = ["%s==%s" % pin for pin in below.items()]
    # an override wins over what others ask for, but drops the extras that they want: only for what has a reason
    overrides = notes["held"] + [pin for pin in constraints if project(pin) in held_below]
    # torch beside its lock: its CPU build asks for less than PyPI's, which the resolver would take
    absent = notes["absent"] + [project(pin) for pin in notes["torch"]]
    overrides += [name + "; python_version < '3'" for name in absent]
    wanted = notes["Made from"] + [name for other in BELOW[layer] for name in lock_notes(other)["Made from"]]
    before = [] if upgrade else ["%s==%s" % pin for pin in _versions(layer).items()]  # uv keeps what it finds there
    contents = {"overrides": overrides, "constraints": constraints, "result": before}
    contents["wanted"] = wanted + notes["held"]
    log, files = Log(), {}
    for name, lines in contents.items():
        files[name] = os.path.join(log.folder, "%s-%s.txt" % (layer, name))
        with open(files[name], "w") as file:
            file.write("".join(line + "\n" for line in lines))
    command = ["pip", "compile", files["wanted"], "--override", files["overrides"]]
    command += ["--constraint", files["constraints"], "--output-file", files["result"]]
    command += ["--python-version", PYTHON.get(layer, LOWEST_PYTHON), "--python-platform", PLATFORM]
    command += ["--no-header", "--no-annotate", "--no-strip-extras", "--default-index", index_urls()[0]]
    run_uv(command, log, "resolve " + layer, "the log says which requirements conflict")
    with open(files["result"]) as file:
        pins = [line.split(";")[0].strip() for line in file if "==" in line]
    versions = {project(pin): pin.split("==")[1] for pin in pins}
    return ["%s==%s" % pin for pin in sorted(versions.items()) if pin[0] not in below]


def with_hashes(pin: str) -> str:
    """Return a pin as the lock holds it: with the hash of each file of that version that fits."""
    return " \\\n".join([pin] + ["    --hash=sha256:" + one for one in hashes_on_index(pin)]) + "\n"


def hashes_on_index(pin: str) -> list:
    """Return the hashes of the files of a pin that fit this system.

    Raises:
        SetupError: The index does not answer, or lists none.
    """
    name, version = pin.split("==")
    try:
        files = [one for one in list_files(name) if is_for_this_system(one.name, name, version)]
    except OSError as error:
        raise SetupError("read the hashes of " + pin, str(error), "is the package index reachable?") from None
    hashes = sorted({one.sha256 for one in files if one.sha256})
    if not hashes:
        raise SetupError("read the hashes of " + pin, "the index lists none", "name another index in PIP_INDEX_URL")
    return hashes


def locked() -> dict:
    """Return the layers and the hashes of each package in the locks, by name and version."""
    rows = {}  # type: dict
    for layer in sorted(name[:-4] for name in os.listdir(LOCKS) if name.endswith(".txt")):
        for pin in lock_pins(layer):
            requirement, *hashes = pin.split()
            layers, known = rows.setdefault(tuple(requirement.split("==")), ([], set()))
            layers.append(layer)
            known.update(text.split(":")[1] for text in hashes)
    return rows


def read_list() -> list:
    """Return the rows of the list, [] if there is none."""
    if not os.path.exists(LIST):
        return []
    with open(LIST, newline="") as file:
        file.readline()
        return list(csv.DictReader(file))


def licence_of(package: Distribution) -> str:
    """Return the licence that a package names."""
    words = str(package.metadata.get("License-Expression") or package.metadata.get("License") or "").strip()
    if words and len(words) <= LONGEST and "\n" not in words and words.upper() != "UNKNOWN":
        return words
    classifiers = [text for text in package.metadata.get_all("Classifier") or [] if text.startswith("License ::")]
    return "; ".join(text.split(" :: ")[-1] for text in classifiers) or words.split("\n")[0][:LONGEST] or NOT_SAID


def write_list() -> int:
    """Write the list, and return how many licences are not known."""
    python = "python%d.%d" % sys.version_info[:2]
    places = [os.path.join(ROOT, ".venv", "lib", python, "site-packages"), *sys.path]
    said = {}  # type: dict
    for package in distributions(path=places):
        said.setdefault((project(package.metadata["Name"]), package.version), licence_of(package))
    before = {(row["name"], row["version"]): row["licence"] for row in read_list()}
    rows, unknown = [], 0
    for (name, version), (layers, hashes) in sorted(locked().items()):
        old = before.get((name, version), NOT_KNOWN)
        licence = said.get((project(name), version)) or said.get((project(name), version.split("+")[0])) or old
        unknown += licence == NOT_KNOWN
        rows.append([name, version, " ".join(layers), licence, " ".join(sorted(hashes))])
    with open(LIST + ".new", "w", newline="") as file:
        file.write(HEAD)
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    os.replace(LIST + ".new", LIST)
    return unknown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
