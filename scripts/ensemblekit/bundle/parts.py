# SPDX-License-Identifier: Apache-2.0
"""A stream cut into files of bounded size, with the checksum of each; `unpack.py` joins them again."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from typing_extensions import Buffer

__all__ = ["Part", "PartWriter"]


@dataclass(frozen=True)
class Part:
    """One file of a bundle.

    Attributes:
        name: Its name in the bundle's folder.
        size: Bytes.
        sha256: Of its content.
    """

    name: str
    size: int
    sha256: str


class PartWriter(io.RawIOBase):
    """A writable stream that fills `part-000`, `part-001` … in a folder."""

    def __init__(self, folder: Path, part_size: int) -> None:
        """Write into a folder, each file at most `part_size` bytes."""
        self.folder, self.part_size = folder, part_size
        self.parts = list[Part]()
        self.written = 0
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Buffer) -> int:
        """Write all of `data`, over as many parts as it takes.

        Raises:
            OSError: The disk is full.
        """
        view = memoryview(data).cast("B")
        total = len(view)
        while view:
            if self._file is None:
                self._file = (self.folder / f"part-{len(self.parts):03d}").open("wb")
                self._hash = hashlib.sha256()
            piece = view[: self.part_size - self._file.tell()]
            self._file.write(piece)
            self._hash.update(piece)
            view = view[len(piece) :]
            if self._file.tell() == self.part_size:
                self._end_part()
        self.written += total
        return total

    def _end_part(self) -> None:
        if self._file is not None:
            size, path = self._file.tell(), Path(self._file.name)
            self._file.close()
            self._file = None
            self.parts.append(Part(path.name, size, self._hash.hexdigest()))

    def close(self) -> None:
        """End the last part."""
        self._end_part()
        super().close()
