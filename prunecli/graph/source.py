"""Where in the model's own code an error came up: the line, without a path."""

from __future__ import annotations

import linecache
import traceback
from pathlib import PurePath
from typing import Final

FOREIGN: Final = ("torch", "prunecli", "numpy")
"""Packages whose code is not the model's."""

LONGEST: Final = 90
"""Lines of code are shown up to here."""


def line_of(error: BaseException) -> str:
    """Return the innermost line of the model's code that raised: "`code` (file.py:17)"; empty if unknown."""
    found = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        line = linecache.getline(frame.f_code.co_filename, number, frame.f_globals).strip()
        if package not in FOREIGN and line:
            found = f"`{_short(line)}` ({PurePath(frame.f_code.co_filename).name}:{number})"
    return found


def _short(line: str) -> str:
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."
