"""Ctrl-C, and requests to terminate, as a question that long work asks when it can stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stopping_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield whether Ctrl-C or a request to terminate came; the second one comes through at once."""
    asked = threading.Event()

    def hear(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # only it hears signals
        yield asked.is_set
        return
    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
