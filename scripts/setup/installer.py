# SPDX-License-Identifier: Apache-2.0
"""pip in one environment: what is locked, with its hashes, from wherever this user's pip settings point."""

import os
import subprocess

from setup import PYTHONS
from setup.messages import Log, Phase, SetupError

HOST_PTH = "ensemblekit_host.pth"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH_INDEX_VARIABLE = "ENSEMBLEKIT_TORCH_INDEX"
PROBE_TIMEOUT_S = 3
INDEX_HINT = "is the package index reachable? pip's own settings count (mirror, proxy); then run again"
TORCH_HINT = (
    "the CPU build of torch lives on %s; make it reachable, name a mirror of it in %s, or put its wheel in a folder "
    "and name that in PIP_FIND_LINKS" % (CPU_TORCH_INDEX, TORCH_INDEX_VARIABLE)
)
DISK_FULL = "No space left on device"
DISK_FULL_HINT = (
    "free some disk (`df -h`, also of /tmp and of pip's cache); ENSEMBLEKIT_VENV names another place for the "
    "environment, TMPDIR for pip's temporary files"
)
CHANGED = "THESE PACKAGES DO NOT MATCH THE HASHES"
CHANGED_HINT = "a mirror or proxy altered a file, or the index has another one under that name: the log has both hashes"


class Installer:
    """Runs pip in one environment, with a bar in front of the reader."""

    def __init__(self, folder: str, log: Log) -> None:
        self.folder, self.log = folder, log
        self.python = os.path.join(folder, "bin", "python")

    def install_locked(self, pins: list, source: list, attempted: str) -> None:
        """Install pins that carry hashes; pip refuses every file with another one."""
        path = os.path.join(self.log.folder, "packages.txt")
        with open(path, "w") as file:
            file.write("".join(pin + "\n" for pin in pins))
        self.install("packages", source + ["--require-hashes", "-r", path], len(pins), attempted)

    def install_torch(self, requirement: str, source: list) -> None:
        """Install torch, without a hash: its build differs from index to index (see the lock)."""
        self.install("torch", source + [requirement], 1, "install " + requirement, TORCH_HINT)

    def install(self, name: str, arguments: list, total: int, attempted: str, hint: str = INDEX_HINT) -> None:
        """Install something with the pip settings that this user has, and show how it goes."""
        phase, before = Phase(name), self.count()
        command = [self.python, "-I", "-m", "pip", "install", "--no-deps", "--no-compile", "--no-input"]
        command += ["--disable-pip-version-check", "--progress-bar", "off"]

        def watch(start: int) -> None:
            self._show(phase, start, total, self.count() - before)

        try:
            self.log.run(command + arguments, attempted, hint, watch)
        except SetupError as error:
            said = "\n".join(self.log.lines_from(0))
            for words, better in ((DISK_FULL, DISK_FULL_HINT), (CHANGED, CHANGED_HINT)):
                if words in said:
                    raise SetupError(attempted, error.found, better, self.log.path) from None
            raise
        phase.end("%d packages installed" % total if total > 1 else "installed")

    def _show(self, phase: Phase, start: int, total: int, unpacked: int) -> None:
        """Show how many packages pip has found, then how many it has unpacked (half the bar each)."""
        lines = self.log.lines_from(start)
        named = [os.path.basename(line.split()[1]) for line in lines if line.startswith(("Collecting ", "Processing "))]
        if any(line.startswith("Installing collected") for line in lines):
            phase.show(min(total, (total + max(0, unpacked)) // 2), total, "unpacking")
        else:
            phase.show(len(named) // 2, total, "fetching " + named[-1] if named else "")

    def _libraries(self) -> list:
        libraries = [os.path.join(self.folder, "lib", "python" + v, "site-packages") for v in PYTHONS]
        return [library for library in libraries if os.path.isdir(library)]

    def count(self) -> int:
        """Return how many distributions the environment holds."""
        return sum(name.endswith(".dist-info") for library in self._libraries() for name in os.listdir(library))

    def see_also(self, folders: list) -> None:
        """Let this environment find the packages of other folders, after its own."""
        with open(os.path.join(self._libraries()[0], HOST_PTH), "w") as file:
            file.write("".join(folder + "\n" for folder in folders))

    def unmet(self) -> list:
        """Return the lines of `pip check` if it finds something wrong."""
        answer = subprocess.run(
            [self.python, "-I", "-m", "pip", "check", "--disable-pip-version-check"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        return answer.stdout.decode().splitlines() if answer.returncode else []


def torch_index() -> list:
    """Return pip's options for the CPU build of torch: PyTorch's own index where it answers."""
    chosen = os.environ.get(TORCH_INDEX_VARIABLE)
    if chosen is None:
        from urllib.request import urlopen

        try:
            urlopen(CPU_TORCH_INDEX + "/torch/", timeout=PROBE_TIMEOUT_S).close()
            chosen = CPU_TORCH_INDEX
        except (OSError, ValueError):  # offline, blocked, or behind a mirror: pip's own settings must do
            chosen = ""
    return ["--extra-index-url", chosen] if chosen else []
