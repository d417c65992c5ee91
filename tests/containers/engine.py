# SPDX-License-Identifier: Apache-2.0
"""A real podman with storage of its own, and stand-ins for NVIDIA's images built from Debian and PyPI's servers."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ensemblekit.assets.store import build_once
from ensemblekit.paths import cache_dir
from ensemblekit.releases import get_release, has_ensembles
from ensemblekit.servers.embedded import server_tree

NEEDED = ("podman", "debootstrap", "docker-registry")
SUITE, PACKAGES = "bookworm", "python3,libpython3.11,ca-certificates"
NUMPY = "1.26.4"  # numpy 2 breaks string tensors in the stubs up to 24.10
UNUSED = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/cache/debconf",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
)
DEBIAN = "localhost/ensemblekit-stand-in/debian"
STAND_INS = "localhost/ensemblekit-stand-in/tritonserver"
# tag of NVIDIA's image that it stands for -> release and flavour whose server it holds
IMAGES = {
    "24.08-py3": ("24.08", "base-plus-vllm"),
    "24.08-vllm-python-py3": ("24.08", "vllm-image"),
    "24.10-vllm-python-py3": ("24.10", "vllm-image"),
}
DEBOOTSTRAP_TIMEOUT_S = 900
COMMAND_TIMEOUT_S = 1200  # a minute or two alone


def missing() -> str:
    """Return why these tests cannot run here, empty if they can."""
    absent = [name for name in NEEDED if not shutil.which(name)]
    absent += [] if shutil.which("runc") or shutil.which("crun") else ["runc"]
    if absent:
        return f"no {', no '.join(absent)} on this machine: .ci/run installs them"
    if os.geteuid() != 0:
        return "not root: debootstrap and podman's own storage need it"
    return "" if sys.version_info[:2] == (3, 11) else "Debian's Python is 3.11, this one is not"


@dataclass
class Podman:
    """An engine with a storage folder of its own; `variables` make any process use it."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Write its configuration: overlay where this kernel mounts it, else whole copies (vfs)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.driver = next((name for name in ("overlay", "vfs") if self._answers_with(name)), "none")

    def _answers_with(self, driver: str) -> bool:
        storage = self.folder / driver
        text = f'[storage]\ndriver = "{driver}"\ngraphroot = "{storage}/graph"\nrunroot = "{storage}/run"\n'
        (self.folder / "storage.conf").write_text(text)
        (self.folder / "registries.conf").write_text('[[registry]]\nlocation = "127.0.0.1"\ninsecure = true\n')
        self.variables = {
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self.folder / "registries.conf"),
            "BUILDAH_ISOLATION": "chroot",  # a build then needs no network and no cgroups of its own
            "BUILDAH_LAYERS": "true" if driver == "overlay" else "false",  # vfs copies an image for each layer
            "ENSEMBLEKIT_ENGINE": "podman",
            "ENSEMBLEKIT_IMAGES": STAND_INS,
            "ENSEMBLEKIT_CONTAINER_NETWORK": "host",
        }
        return self.run("info", check=False).returncode == 0

    def run(
        self, *words: str, check: bool = True, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run podman and return what it said."""
        variables = os.environ | self.variables | (environment or {})
        return subprocess.run(
            ["podman", *words], env=variables, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=check
        )

    def lines(self, *words: str) -> list[str]:
        """Return podman's output by line."""
        return self.run(*words).stdout.splitlines()

    def untag(self, name: str) -> None:
        """Take one name from an image; `podman untag` with one word alone would take all of them."""
        self.run("untag", name, name)

    def state(self) -> dict[str, list[str]]:
        """Return what there is: containers, images, volumes, mounts and processes of this storage."""
        return {
            "containers": self.lines("ps", "--all", "--format={{.Names}}"),
            "images": sorted(self.lines("images", "--all", "--no-trunc", "--format={{.ID}} {{.Repository}}:{{.Tag}}")),
            "volumes": self.lines("volume", "ls", "--quiet"),
            "mounts": sorted(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()
                             if str(self.folder) in line and "/graph/overlay " not in f"{line.split()[1]} "),
            "processes": self.processes(),
        }  # fmt: skip

    def processes(self) -> list[str]:
        """Return the command lines of this storage's containers and of what watches them."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:  # it ended meanwhile
                continue
            if str(self.folder) in line and "conmon" in line:
                found.append(line)
        return found

    def make_images(self) -> None:
        """Build the stand-ins; Debian's part comes from the kit's cache from the second time on."""
        begin = time.monotonic()
        archive = debian_archive()
        self.seconds["Debian"] = time.monotonic() - begin
        self.run("import", "--quiet", str(archive), DEBIAN)
        for tag, (release, flavour) in IMAGES.items():
            ensembles = has_ensembles(get_release(release), flavour)  # type: ignore[arg-type]
            context = server_tree(get_release(release), ensembles=ensembles)
            file = Path(__file__).parent / "stand_in.Containerfile"
            emulated = f"--build-arg=EMULATED={str(not ensembles).lower()}"
            self.run("build", f"--file={file}", emulated, f"--tag={STAND_INS}:{tag}", str(context))
        self.seconds["images"] = time.monotonic() - begin - self.seconds["Debian"]

    def remove(self) -> None:
        """Remove everything, the storage included."""
        self.run("rm", "--all", "--force", check=False)
        self.run("rmi", "--all", "--force", check=False)
        for mount in sorted((line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()), reverse=True):
            if mount.startswith(str(self.folder)):
                subprocess.run(["umount", mount], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def make_root(draft: Path, suite: str, packages: str) -> Path:
    """Make a small Debian with these packages as the folder `root`, and return that."""
    root = draft / "root"
    command = ["debootstrap", "--variant=minbase", f"--include={packages}", suite, str(root)]
    with (draft / "debootstrap.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, timeout=DEBOOTSTRAP_TIMEOUT_S, check=True)
    for name in UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
    return root


def debian_archive() -> Path:
    """Return the stand-ins' Debian as an archive that podman imports; made where the cache has none."""
    return build_once(cache_dir() / "stand-in" / f"{SUITE}-numpy-{NUMPY}", make_debian) / "root.tar"


def make_debian(draft: Path) -> None:
    """Make a small Debian with Python and numpy, as an archive that podman imports."""
    root = make_root(draft, SUITE, PACKAGES)
    packages = root / "usr/local/lib/python3.11/dist-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), f"numpy=={NUMPY}"]
    subprocess.run(pip, timeout=COMMAND_TIMEOUT_S, check=True)
    shutil.rmtree(packages / "numpy" / "tests", ignore_errors=True)
    subprocess.run(["tar", "-C", str(root), "-cf", str(draft / "root.tar"), "."], check=True)
    shutil.rmtree(root)
