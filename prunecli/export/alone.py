"""What writing files needs for itself: signals that wait, folders for one process at a time, no leftovers."""

from __future__ import annotations

import os
import re
import signal
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError:  # a system without such locks
    fcntl = None  # type: ignore[assignment]

SECONDS_TO_WAIT: Final = 10.0
"""How long another process may take for its renaming; who holds a folder longer does something else."""
SECONDS_OF_DOUBT: Final = 60.0
"""A part as young as that may belong to a process that is about to lock it."""
_SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C and requests to end wait until the block is over; then they come through."""
    if threading.current_thread() is not threading.main_thread():  # only it hears signals
        yield
        return
    waiting: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    mine = {number: old for number, old in handlers.items() if old not in (None, signal.SIG_IGN)}
    for number in mine:
        signal.signal(number, lambda heard, _: waiting.append(heard))
    try:
        yield
    finally:
        for number, old in mine.items():
            signal.signal(number, old)
        for number in dict.fromkeys(waiting):
            signal.raise_signal(number)


@contextmanager
def alone_in(folders: Iterable[Path]) -> Iterator[bool]:
    """Keep folders to this process, each once, where the system can; yield whether it could.

    Whoever holds one for long, such as `flock FOLDER prunecli ...`, is not waited for.
    """
    with ExitStack() as stack:
        latest = time.monotonic() + SECONDS_TO_WAIT
        yield all([_lock_folder(folder, latest, stack) for folder in sorted(set(folders))])


def claim(handle: int, stack: ExitStack) -> None:
    """Mark an open file as in use until the stack unwinds or the process dies, also when it is closed."""
    if fcntl is None:
        return
    second = os.dup(handle)
    stack.callback(os.close, second)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def name_of_part(target: Path, token: str) -> Path:
    """Return under what name the content of a file is written first: hidden, in the same folder."""
    return target.with_name(f".{target.name[:40]}.{token}.part")


def remove_leftovers(target: Path) -> None:
    """Remove parts of this file that a process left behind which was killed."""
    pattern = re.compile(re.escape(f".{target.name[:40]}.") + r"[0-9a-f]{8}\.part")
    with suppress(OSError):
        for path in [each for each in target.parent.iterdir() if pattern.fullmatch(each.name)]:
            if _is_abandoned(path):
                path.unlink(missing_ok=True)


def is_in_use(path: Path) -> bool:
    """Say whether a living process has claimed a file; it has where nobody can tell."""
    if fcntl is None:
        return True
    with suppress(OSError):
        if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would be waited for
            return True
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)
        return False
    return True


def _lock_folder(folder: Path, latest: float, stack: ExitStack) -> bool:
    if fcntl is None:
        return False
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # what is wrong with it is said when it is written to
        return False
    stack.callback(os.close, handle)
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= latest:
                return False
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return False
        else:
            return True


def _is_abandoned(path: Path) -> bool:
    """Say whether nobody writes the part any more: it is not new, and no process has it locked."""
    is_new = time.time() - path.lstat().st_mtime < SECONDS_OF_DOUBT
    return not is_new and not is_in_use(path)
