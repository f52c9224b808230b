"""Large arrays in files -> arrays that are mapped, and of which only what was just read is in memory."""

from __future__ import annotations

import math
import mmap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGE = 2**26
"""Bytes of an array that is worth mapping; smaller ones are read as a whole, their checksums verified."""
_LOCAL_HEADER = 30
"""Bytes in front of the name of a member of a zip file."""


class Mapped:
    """An array of a file whose rows are read when they are asked for, and let go of after."""

    def __init__(self, path: Path, begin: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Map the array whose bytes begin at `begin`; ValueError if the file is too short for it."""
        with path.open("rb") as file:
            self.window = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = int(np.prod(shape, dtype=np.int64))
        self.array = np.frombuffer(self.window, dtype, count, begin).reshape(shape)

    def rows(self, chosen: list[int]) -> NDArray[Any]:
        """Return some rows, in memory of their own.

        Raises:
            OSError: the file was shortened; looking at what is gone would end the process.
        """
        if self.window.size() < len(self.window):
            raise OSError("the file was shortened while it was in use")
        found = self.array[chosen]
        if hasattr(mmap, "MADV_DONTNEED"):
            self.window.madvise(mmap.MADV_DONTNEED)
        return found


def member_of(path: Path, name: str) -> Mapped | None:
    """Return an array of an npz file, if it is large and lies there as it is; None: it has to be read.

    Raises:
        ValueError: it does not.
    """
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
        if info.file_size < LARGE or info.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            first = version == (1, 0)
            read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read(file)
            header = file.tell()
    if not dtype.hasobject and header + math.prod(shape) * dtype.itemsize != info.file_size:
        raise ValueError(f"{name} of shape {shape} and {dtype} cannot fill {info.file_size:,} bytes")
    if is_fortran or dtype.kind not in "biuf" or not shape or version > (2, 0):
        return None
    with path.open("rb") as file:
        file.seek(info.header_offset)
        local = file.read(_LOCAL_HEADER)
    lengths = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    return Mapped(path, info.header_offset + _LOCAL_HEADER + sum(lengths) + header, shape, dtype)
