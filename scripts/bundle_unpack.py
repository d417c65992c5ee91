#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Unpack a bundle of the ensemble kit on a host without a network, and set the kit up there.

    python3 unpack.py TARGET [--no-setup]

Needs nothing but this Python, of the version that the bundle was made for; if it brings one, of any version from 3.6
on. Every part is checked against the manifest before anything is written.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
CHUNK = 1 << 20


class UnpackError(Exception):
    """Unpacking cannot go on; its text is what was attempted, what was found, and a hint."""

    def __init__(self, attempted: str, found: str, hint: str) -> None:
        super().__init__("Could not %s.\nFound: %s\nHint: %s" % (attempted, found, hint))


def say(text: str) -> None:
    """Print a line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def read_manifest() -> dict:
    """Return the manifest beside this script."""
    try:
        with open(os.path.join(HERE, "manifest.json")) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise UnpackError("read the bundle in %s" % HERE, str(error), "copy manifest.json beside unpack.py again")


def check_parts(manifest: dict) -> None:
    """Compare every part with its checksum; name all that are missing or broken at once."""
    wrong = []
    for part in manifest["parts"]:
        path = os.path.join(HERE, part["name"])
        if not os.path.isfile(path):
            wrong.append("%s is missing" % part["name"])
        elif sha256_of(path) != part["sha256"]:
            wrong.append("%s is broken" % part["name"])
    if wrong:
        raise UnpackError("verify the bundle", "; ".join(wrong), "copy these parts again; the others are whole")


def sha256_of(path: str) -> str:
    """Return the sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


class Joined(io.RawIOBase):
    """The parts, one after the other, as one stream."""

    def __init__(self, paths: list) -> None:
        self.paths, self.file = list(paths), None

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Read the next bytes."""
        while True:
            if self.file is None:
                if not self.paths:
                    return 0
                self.file = open(self.paths.pop(0), "rb")  # noqa: SIM115 - closed at its end
            count = self.file.readinto(buffer)
            if count:
                return count
            self.file.close()
            self.file = None


def unpack(manifest: dict, target: str) -> None:
    """Write the kit and its wheels to a new folder."""
    if os.path.isdir(target) and os.listdir(target):
        raise UnpackError("unpack into %s" % target, "the folder is not empty", "name a new folder")
    os.makedirs(target, exist_ok=True)
    paths = [os.path.join(HERE, part["name"]) for part in manifest["parts"]]
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with io.BufferedReader(Joined(paths), CHUNK) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        archive.extractall(target, **options)
    note_host(target)


def note_host(target: str) -> None:
    """Write down where this Python keeps its packages: the kit uses those that the bundle left at home."""
    path = os.path.join(target, "bundle", "bundle.json")
    with open(path) as file:
        description = json.load(file)
    folders = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    description["host_packages"] = folders if description["present"] else []
    with open(path, "w") as file:
        json.dump(description, file, indent=1)


def check_python(manifest: dict) -> None:
    """Refuse another Python than the one the wheels are for, unless the bundle brings that one."""
    short = "%d.%d" % sys.version_info[:2]
    if short != manifest["python"] and not manifest.get("brings_python"):
        raise UnpackError(
            "set the kit up with Python %s" % short,
            "the bundle was made for Python %s" % manifest["python"],
            "run `python%s unpack.py TARGET`, or make another bundle with --python %s" % (manifest["python"], short),
        )


def main(arguments: list) -> int:
    """Verify, unpack, set up."""
    targets = [word for word in arguments if not word.startswith("-")]
    if len(targets) != 1 or set(arguments) - set(targets) - {"--no-setup"}:
        say(__doc__)
        return 2
    began = time.monotonic()
    try:
        manifest = read_manifest()
        check_python(manifest)
        check_parts(manifest)
        say("%d parts verified, %.0f s" % (len(manifest["parts"]), time.monotonic() - began))
        unpack(manifest, targets[0])
        say("unpacked into %s, %.0f s" % (targets[0], time.monotonic() - began))
    except UnpackError as error:
        say(str(error))
        return 1
    if "--no-setup" in arguments:
        return 0
    option = ["--quick"] if manifest["device"] == "quick" else ["--device", manifest["device"]]
    environment = dict(os.environ)
    if not manifest.get("brings_python"):  # else the set-up finds that one
        environment["ENSEMBLEKIT_PYTHON"] = sys.executable
    script = os.path.join(targets[0], "scripts", "bootstrap.py")
    code = subprocess.call([sys.executable, script] + option, env=environment)
    if code == 0:
        say("Ready after %.0f s. Next: cd %s && scripts/run" % (time.monotonic() - began, targets[0]))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
