"""Standard output for results, standard error for all else; both may be closed early."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prunecli.errors import OutputError

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write_result(text: str) -> None:
    """Write a result to standard output. When the reader has gone away (`| head -1`), say nothing.

    Raises:
        OutputError: it cannot be written, as on a full disk.
    """
    try:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout.fileno())
    except OSError as error:
        _silence(sys.stdout.fileno())
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"Standard output cannot be written: {reason}.") from None


def say(text: str) -> None:
    """Write a line to standard error."""
    with suppress(BrokenPipeError):
        print(plain(text), file=sys.stderr, flush=True)


def say_error(text: str) -> None:
    """Write an error to standard error, with the word in red where there is colour."""
    label = "\x1b[31merror:\x1b[0m" if has_colour(sys.stderr.isatty()) else "error:"
    with suppress(BrokenPipeError):
        print(label, plain(text), file=sys.stderr, flush=True)


def has_colour(is_terminal: bool) -> bool:
    """Say whether to use colour: NO_COLOR forbids it, FORCE_COLOR asks for it, else a terminal gets it."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (is_terminal and os.environ.get("TERM") != "dumb")


def asked_columns() -> int | None:
    """Return how wide the user says that text may be, by COLUMNS; None where that is no positive number."""
    asked = os.environ.get("COLUMNS", "")
    return (int(asked) or None) if asked.isdecimal() else None


def plain(text: str) -> str:
    """Strip terminal escape codes, which names inside a checkpoint might carry."""
    return _CONTROL.sub("", text)


@contextmanager
def quietly_closed() -> Iterator[None]:
    """Let the last flush, which Python does at exit, fail without a word; a stream may be closed already."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 - open until the process ends
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                _silence(stream.fileno())


def _silence(descriptor: int) -> None:
    """Send what is still written to a closed pipe nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
