"""Few bytes that ask for much memory -> an error, before the machine is full."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ABOUT_US = Path("/proc/self/status")
_WANTING = (
    "can't allocate memory",
    "annot allocate memory",
    "failed to map segment",
    "bad_alloc",
    "Resource temporarily unavailable",
    "can't start new thread",
)
"""What PyTorch, the loader of libraries, C++ and threads without room say where no more memory is given."""


@contextmanager
def at_most(amount: int) -> Iterator[None]:
    """Let this process take so many bytes more than it has, where the system can tell and limit it: Linux.

    Whoever asks for more gets a `MemoryError`, from PyTorch a `RuntimeError`.
    """
    taken = _taken()
    if taken is None:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (soft, hard, taken + amount) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(known), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def is_for_want_of_memory(error: BaseException) -> bool:
    """Say whether an error means that no more memory was given, here or on a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, (RuntimeError, ImportError)) and any(each in str(error) for each in _WANTING)


def _taken() -> int | None:
    """Return how many bytes of memory the system counts against the limit, if it says so."""
    with suppress(OSError):
        found = re.search(r"^VmData:\s*(\d+) kB", _ABOUT_US.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    return None
