"""A request to end, by another program or a terminal that is gone -> a clean end, as after Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def asked_to_end(heard: list[int]) -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt the program, but for those it was told to ignore, as by `nohup`.

    Args:
        heard: gets the number of each signal that comes.
    """

    def hear(number: int, frame: Any) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    mine = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in mine:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
