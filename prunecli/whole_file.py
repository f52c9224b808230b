"""A path from an unknown hand -> the bytes of the file: never a pipe or a device, which might not end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

MOST_TEXT: Final = 2**28
"""No spec, plan or report is larger, in bytes."""
_MADE_UP: Final = 2**20


def read_whole(path: str | Path, most: int | None = MOST_TEXT) -> bytes:
    """Return what a regular file holds.

    Args:
        path: the file; links are followed.
        most: how many bytes it may have; any number that fits into memory if None.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "It is no path", str(path))
    # a named pipe without a writer would be waited for, unless it is opened so
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "It is no regular file", str(path))
        if most is not None and about.st_size > most:
            raise OSError(errno.EFBIG, f"It is larger than {most:,} bytes", str(path))
        try:
            # as much memory is taken as is asked for; some systems make up files, of which they say 0 bytes
            return file.read(None if most is None else min(most, max(about.st_size, _MADE_UP)))
        except MemoryError:
            raise OSError(errno.ENOMEM, "It is larger than the memory", str(path)) from None
