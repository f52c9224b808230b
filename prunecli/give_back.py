"""Memory that is free again -> the system: the C library keeps it otherwise, for whatever comes next."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

_M_MMAP_THRESHOLD: Final = -3
_LARGE: Final = 2**16


def give_back() -> None:
    """Hand over what is free now; without glibc, do nothing."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def give_back_at_once() -> None:
    """Hand over what is free now, and from now on each block of some size as soon as it is freed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
    give_back()
