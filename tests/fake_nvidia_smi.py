# SPDX-License-Identifier: Apache-2.0
"""A fake `nvidia-smi` that answers the kit's questions in the real one's words, for machines without a GPU."""

from dataclasses import dataclass, field
from pathlib import Path

GPU_HEADER = "index, uuid, name, memory.total [MiB], memory.free [MiB], driver_version, compute_cap"
PROCESS_HEADER = "gpu_uuid, pid, process_name, used_gpu_memory [MiB]"
UUIDS = ("GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6")
H100 = "NVIDIA H100 80GB HBM3"
H100_TOTAL_MIB = 81559
# what the real one says, with exit code 2, to a field that its driver is too old for
UNKNOWN_FIELD = 'Field "compute_cap" is not a valid field to query.'


@dataclass
class FakeNvidiaSmi:
    """What the fake will say.

    Attributes:
        free_mib: Free memory of each H100 of the machine (MiB); their number is the number of GPUs.
        driver: The driver's version; below 510 it does not know the field compute_cap.
        capability: The compute capability of all.
        processes: Lines below the header of `--query-compute-apps`.
    """

    free_mib: tuple[int, ...] = (81008,)
    driver: str = "580.65.06"
    capability: str = "9.0"
    processes: tuple[str, ...] = field(default=())

    def gpu_lines(self) -> list[str]:
        """The lines below the header of `--query-gpu`."""
        return [
            f"{index}, {UUIDS[index]}, {H100}, {H100_TOTAL_MIB} MiB, {free} MiB, {self.driver}, {self.capability}"
            for index, free in enumerate(self.free_mib)
        ]

    def install(self, folder: Path) -> Path:
        """Write the program into a folder that belongs on the PATH, and return the folder."""
        folder.mkdir(exist_ok=True)
        gpus = [GPU_HEADER, *self.gpu_lines()]
        short = [line.rpartition(", ")[0] for line in gpus]
        old = int(self.driver.split(".")[0]) < 510
        for name, lines in {"gpus": gpus, "short": short, "apps": [PROCESS_HEADER, *self.processes]}.items():
            (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
        refuse = f"echo '{UNKNOWN_FIELD}'; exit 2"
        script = folder / "nvidia-smi"
        script.write_text(
            "#!/bin/sh\n"
            'here=$(dirname "$0")\n'
            'case "$1" in\n'
            f"  --query-gpu=*compute_cap) {refuse if old else 'cat $here/gpus.csv'} ;;\n"
            "  --query-gpu=driver_version) cut -d, -f6 $here/short.csv | tail -n +2 ;;\n"
            "  --query-gpu=*) cat $here/short.csv ;;\n"
            "  --query-compute-apps=*) cat $here/apps.csv ;;\n"
            "  -L) cut -d, -f3 $here/short.csv | tail -n +2 | sed 's/^/GPU 0:/' ;;\n"
            "  *) exit 6 ;;\n"
            "esac\n"
        )
        script.chmod(0o755)
        return folder
