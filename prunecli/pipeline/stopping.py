"""Ctrl-C, and requests to terminate, as a question that long work asks when it can stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stopping_on_signals(deaf: float = 0.0) -> Iterator[Callable[[], bool]]:
    """Yield whether Ctrl-C or a request to terminate came; the second one comes through at once.

    When the work has stopped for it, whoever listened to that signal before hears of it too.

    Args:
        deaf: so many seconds after the first one, others are the same one come twice: by the terminal, and
            by torchrun, which had it too.
    """
    asked = threading.Event()
    heard: list[int] = []
    since = 0.0

    def hear(number: int, frame: Any) -> None:
        nonlocal since
        if asked.is_set() and time.monotonic() - since < deaf:
            return
        heard.append(number)
        if asked.is_set():
            raise KeyboardInterrupt
        since = time.monotonic()
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # only it hears signals
        yield asked.is_set
        return
    before = {number: signal.signal(number, hear) for number in _listened_to()}
    try:
        yield asked.is_set
    except KeyboardInterrupt:
        earlier = before[heard[0]] if heard else None
        if callable(earlier):
            earlier(heard[0], None)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listened_to() -> list[int]:
    """Return the signals that ask a run to stop; not those that it was told to ignore, as by `nohup`."""
    numbers = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    return [
        number
        for number in numbers
        if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN)
    ]
