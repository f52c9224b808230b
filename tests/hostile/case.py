"""What a hostile file is in the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.hostile.forged import Files


@dataclass(frozen=True)
class Case:
    """A hostile file, or a folder of them."""

    name: str
    make: Callable[[], bytes | Files]
    commands: tuple[tuple[str, ...], ...]
    """`FILE` stands for the path."""
    words: str
    """What the error says: a regular expression."""
    code: int = 4
    suffix: str = ""
