"""Standard output for results, standard error for all else; both may be closed early."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from prunecli.errors import OutputError

_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_LONGEST_ERROR = 2000
"""Characters."""


def write_result(text: str) -> None:
    """Write a result to standard output. When the reader has gone away (`| head -1`), say nothing.

    Raises:
        OutputError: it cannot be written, as on a full disk.
    """
    try:
        sys.stdout.write(_encodable(text if text.endswith("\n") else f"{text}\n", sys.stdout))
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout.fileno())
    except OSError as error:
        _silence(sys.stdout.fileno())
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"Standard output cannot be written: {reason}.") from None


def say(text: str) -> None:
    """Write a line to standard error."""
    with suppress(OSError):  # a closed pipe, a terminal that is gone
        print(plain(text), file=sys.stderr, flush=True)


def say_error(text: str) -> None:
    """Write an error to standard error, with the word in red where there is colour."""
    first, *others = text.splitlines() or [""]  # a name from a file may hold line breaks of its own
    text = "\n".join([first, *[" ".join(others)] * bool(others)])
    text = text if len(text) <= _LONGEST_ERROR else f"{text[: _LONGEST_ERROR - 3]}..."
    label = "\x1b[31merror:\x1b[0m" if has_colour(sys.stderr.isatty()) else "error:"
    with suppress(OSError):  # a closed pipe, a terminal that is gone
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
    """Strip terminal escape codes, and what turns text around, which names inside a file might carry."""
    return _CONTROL.sub("", _encodable(text, sys.stderr))


def _encodable(text: str, stream: TextIO) -> str:
    """Escape the characters that a stream cannot write, such as halves of pairs."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


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
            except OSError as error:
                if stream is sys.stdout and not isinstance(error, BrokenPipeError):
                    raise
                _silence(stream.fileno())


def _silence(descriptor: int) -> None:
    """Send what is still written to a closed pipe nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
