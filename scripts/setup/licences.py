# SPDX-License-Identifier: Apache-2.0
"""The list of every dependency with its version, licence and hashes: env/dependencies.csv, made from the locks.

Licences are what the installed packages say of themselves. One that is not installed here keeps what the list said of
the same version before, else the list says that it is not known.
"""

import csv
import os
import sys
from importlib.metadata import Distribution, distributions

from setup import ROOT
from setup.locks import LOCKS, lock_pins, project

LIST = os.path.join(ROOT, "env", "dependencies.csv")
HEAD = "# SPDX-License-Identifier: Apache-2.0; made from env/locks by `scripts/lock --licences`\n"
COLUMNS = ["name", "version", "layers", "licence", "sha256"]
NOT_SAID = "not said in the package's metadata"
NOT_KNOWN = "not known: not installed where this list was made"
LONGEST = 60  # letters; what is longer is the text of a licence, whose name the classifiers tell


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
