# SPDX-License-Identifier: Apache-2.0
"""What is to be installed: the lock files under env/locks, and what a bundle brought or left out."""

import hashlib
import json
import os
import re

from setup import ROOT

LOCKS = os.path.join(ROOT, "env", "locks")
BUNDLE = os.path.join(ROOT, "bundle")  # there if the kit came as a bundle, without a network


def read_bundle() -> dict:
    """Return what the bundle of this kit brought along, {} for a kit that installs from an index."""
    try:
        with open(os.path.join(BUNDLE, "bundle.json")) as file:
            return json.load(file)
    except OSError:
        return {}


def fingerprint(layer: str) -> str:
    """Return the hash of what defines a layer."""
    name = os.path.join(ROOT, "pyproject.toml") if layer == "package" else os.path.join(LOCKS, layer + ".txt")
    with open(name, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def lock_pins(layer: str) -> list:
    """Return the requirements of a lock file with their hashes, each as one line."""
    with open(os.path.join(LOCKS, layer + ".txt")) as file:
        lines = [line.rstrip("\n") for line in file if not line.startswith("#")]
    return [" ".join(pin.split()) for pin in "\n".join(lines).replace("\\\n", " ").splitlines() if pin.strip()]


def lock_notes(layer: str) -> dict:
    """Return what the comments of a lock file call `Made from`, `held`, `torch` and `absent`."""
    notes = {"Made from": [], "held": [], "torch": [], "absent": []}  # type: dict
    with open(os.path.join(LOCKS, layer + ".txt")) as file:
        for line in file:
            key, _, text = line[2:].partition(": ")
            if line.startswith("# ") and key in notes:
                notes[key] += text.split("(")[0].split()
    return notes


def project(requirement: str) -> str:
    """Return the normalised name of the project that a requirement or a line of `pip check` begins with."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement).group()).lower()


def without_absent(bundle: dict, pins: list) -> list:
    """Return the pins that the bundle does not leave to the host, and did not leave out."""
    absent = set(bundle.get("present", []) + bundle.get("left_out", []))
    return [pin for pin in pins if project(pin) not in absent]
