"""Keeps on disk what takes long to find, so that a run that is interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType

from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from prunecli.errors import OutputError
from prunecli.export.files import write_file
from prunecli.pipeline.listener import Listener
from prunecli.strict_json import Json
from prunecli.whole_file import read_whole

SECONDS_BETWEEN_WRITES = 20.0


class DiskJournal(AbstractContextManager["DiskJournal"]):
    """What was found so far, by key: in memory, and in a file of the user's cache.

    The file goes when the run comes to its end, and stays when the run fails or is interrupted.

    Args:
        conditions: Everything that the findings depend on. A run with the same finds them again.
        listener: Hears that something was found.
        folder: Where the file lies; the user's cache by default.
    """

    def __init__(self, conditions: Json, listener: Listener, folder: Path | None = None) -> None:
        digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
        self.path = (folder or user_cache_path("prunecli") / "interrupted") / f"{digest[:32]}.safetensors"
        self.listener = listener
        self._found: dict[str, Tensor] = {}
        self._written = 0
        self._left: frozenset[str] = frozenset()
        """What another run found, until some of it is of use."""
        self._next_write = time.monotonic() + SECONDS_BETWEEN_WRITES

    def __enter__(self) -> DiskJournal:
        with suppress(OSError, SafetensorError):  # what cannot be read is found anew
            self._found = load(read_whole(self.path, None))
            self._written = len(self._found)
            self._left = frozenset(self._found)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with suppress(OSError):  # most often there is none
                self.path.unlink()
        elif len(self._found) > self._written:
            self._write()
            self.listener.note(f"kept {_results(len(self._found))}: the same command goes on from there")

    def __call__(self, key: str, find: Callable[[], Tensor]) -> Tensor:
        """Return what was found under `key`, or find it."""
        if key not in self._found:
            self._found[key] = find()
            if time.monotonic() >= self._next_write:
                self._write()
        elif key in self._left:
            self._left = frozenset()
            self.listener.note(f"an interrupted run left {_results(self._written)}: going on from there")
        return self._found[key]

    def _write(self) -> None:
        with suppress(OutputError, OSError):  # a cache that cannot be written is no reason to stop
            write_file(self.path, save({key: value.contiguous() for key, value in self._found.items()}), True)
            self._written = len(self._found)
        self._next_write = time.monotonic() + SECONDS_BETWEEN_WRITES


def _results(count: int) -> str:
    return f"{count} result{'s' * (count != 1)}"
