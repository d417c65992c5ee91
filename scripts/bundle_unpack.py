#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Unpack a bundle of the ensemble kit on a host without a network, and set the kit up there.

    python3 unpack.py TARGET [--no-setup]

Needs nothing but this Python, of the version that the bundle was made for; if it brings one, of any version from 3.6
on. Every part is checked against the manifest, and every name in them, before anything is written. One that was
interrupted can be repeated.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from typing import Iterator, Optional

HERE = os.path.dirname(os.path.abspath(__file__))
CHUNK = 1 << 20
MARKER = ".unpacking"  # in the target as long as not everything is there
MOST_MANIFEST = 1 << 24
MOST_PADDING = tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE  # what tar writes after the last file
DEVICES = ("quick", "cpu", "cuda")
DESCRIPTION = "bundle/bundle.json"
# what a file can be that is no manifest, no description or no archive
BROKEN = (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError, MemoryError)
COPY_AGAIN = "copy the whole bundle again, or make it again with `ensemblekit bundle create`"


class UnpackError(Exception):
    """Unpacking cannot go on; its text is what was attempted, what was found, and a hint."""

    def __init__(self, attempted: str, found: str, hint: str) -> None:
        super().__init__("Could not %s.\nFound: %s\nHint: %s" % (attempted, found, hint))


def say(text: str) -> None:
    """Print a line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def read_manifest() -> dict:
    """Return the manifest beside this script."""
    path = os.path.join(HERE, "manifest.json")
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ValueError("manifest.json is no file")
        with open(path, encoding="utf-8") as file:
            manifest = json.loads(file.read(MOST_MANIFEST))
        wrong = wrong_in(manifest)
    except BROKEN as error:
        wrong = str(error)
    if wrong:
        raise UnpackError("read the bundle in %s" % HERE, wrong, "copy manifest.json beside unpack.py again")
    return manifest


def wrong_in(manifest: object) -> Optional[str]:
    """Return what is wrong with a manifest, None if nothing is."""
    if not isinstance(manifest, dict):
        return "the manifest is no JSON object"
    if manifest.get("format") != 1:
        return "the manifest has the format %.20r; this unpack.py reads format 1" % (manifest.get("format"),)
    if not isinstance(manifest.get("python"), str) or manifest.get("device") not in DEVICES:
        return "the manifest names no Python, or no device of %s" % ", ".join(DEVICES)
    parts = manifest.get("parts")
    if not isinstance(parts, list) or not parts:
        return "the manifest lists no parts"
    for number, part in enumerate(parts):
        good = isinstance(part, dict) and part.get("name") == "part-%03d" % number and type(part.get("size")) is int
        if not good or not re.match("[0-9a-f]{64}$", str(part.get("sha256"))):
            return "entry %d of the manifest's parts is not part-%03d with its size and sha256" % (number, number)
    return None


def check_parts(manifest: dict) -> None:
    """Compare every part with its checksum; name all that are missing or broken at once."""
    wrong = []
    for part in manifest["parts"]:
        path = os.path.join(HERE, part["name"])
        try:
            if not os.path.isfile(path):
                wrong.append("%s is missing" % part["name"])
            elif os.path.getsize(path) != part["size"] or sha256_of(path) != part["sha256"]:
                wrong.append("%s is broken" % part["name"])
        except OSError as error:
            wrong.append("%s cannot be read: %s" % (part["name"], error.strerror))
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


def members(manifest: dict) -> Iterator[tuple]:
    """Yield each entry of the archive, and the file to read it from."""
    paths = [os.path.join(HERE, part["name"]) for part in manifest["parts"]]
    with io.BufferedReader(Joined(paths), CHUNK) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            yield member, archive


def check_members(manifest: dict) -> None:
    """Refuse an archive that would write outside the target, or holds what no bundle has; nothing is written yet."""
    room, found = sum(part["size"] for part in manifest["parts"]), set()
    rest = room
    try:
        for member, archive in members(manifest):
            reason = wrong_with(member, room)
            if reason:
                raise UnpackError("unpack the bundle", "%.200r %s" % (member.name, reason), COPY_AGAIN)
            room -= member.size
            found.add(member.name)
            rest -= archive.offset - member.offset
    except BROKEN as error:
        raise UnpackError("read the archive in the bundle", str(error) or type(error).__name__, COPY_AGAIN)
    if DESCRIPTION not in found or rest > MOST_PADDING:
        reason = "it ends early, with %d bytes unread" % rest if rest > MOST_PADDING else "it holds no " + DESCRIPTION
        raise UnpackError("read the archive in the bundle", reason, COPY_AGAIN)


def wrong_with(member: tarfile.TarInfo, room: int) -> Optional[str]:
    """Return why an entry is not written, None if it may be."""
    words = member.name.split("/")
    if member.name.startswith("/") or ".." in words or "\\" in member.name or "\0" in member.name:
        return "would be written outside of the target"
    if not member.name.strip("./") or words[0] == MARKER:
        return "is no name of a file"
    if not (member.isdir() or member.isreg()) or member.issparse():
        return "is a link or a device; a bundle holds files alone"
    if not 0 <= member.size <= room:
        return "is said to have %d bytes, more than the bundle" % member.size
    return None


def unpack(manifest: dict, target: str) -> dict:
    """Write the kit and its wheels to a new folder, or to one where this was interrupted; return its description."""
    marker = os.path.join(target, MARKER)
    if os.path.isdir(target) and os.listdir(target) and not os.path.isfile(marker):
        there = os.path.isfile(os.path.join(target, DESCRIPTION))
        hint = "go on there with `scripts/run`, or name a new folder" if there else "name a new folder"
        raise UnpackError("unpack into %s" % target, "the folder is not empty", hint)
    check_members(manifest)
    try:
        os.makedirs(target, exist_ok=True)
        open(marker, "w").close()
        for member, archive in members(manifest):
            write(member, archive, target)
        description = note_host(target)
        os.remove(marker)
    except BROKEN + (KeyError, TypeError) as error:
        hint = "make room or name another folder, then run the same command again"
        raise UnpackError("unpack into %s" % target, "%s: %s" % (type(error).__name__, error), hint)
    return description


def write(member: tarfile.TarInfo, archive: tarfile.TarFile, target: str) -> None:
    """Write one file or folder; of its mode only whether it can be run."""
    path = os.path.join(target, member.name)
    if member.isdir():
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with archive.extractfile(member) as source, open(path, "wb") as file:
        shutil.copyfileobj(source, file, CHUNK)
    os.chmod(path, 0o755 if member.mode & 0o100 else 0o644)


def note_host(target: str) -> dict:
    """Write down where this Python keeps its packages: the kit uses those that the bundle left at home."""
    path = os.path.join(target, DESCRIPTION)
    with open(path) as file:
        description = json.load(file)
    folders = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    description["host_packages"] = folders if description["present"] else []
    with open(path, "w") as file:
        json.dump(description, file, indent=1)
    return description


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
        description = unpack(manifest, targets[0])
        say("unpacked into %s, %.0f s" % (targets[0], time.monotonic() - began))
    except UnpackError as error:
        say(str(error))
        return 1
    if "--no-setup" in arguments:
        return 0
    option = ["--quick"] if manifest["device"] == "quick" else ["--device", manifest["device"]]
    if "lab" in description.get("layers", []):
        option.append("--lab")
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
