"""Names from a checkpoint -> text that is safe to print."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 120


def printable(name: object, longest: int | None = _LONGEST) -> str:
    r"""Escape what a terminal would obey rather than show, and cut what is too long for a message.

    Args:
        name: any text; the name of a tensor.
        longest: how many characters are kept; None: all.

    >>> printable("conv\x1b[31m")
    'conv\\x1b[31m'
    """
    text = str(name)
    shown = "".join(char if char.isprintable() else _escaped(char) for char in text[:longest])
    return shown if longest is None or len(text) <= longest else f"{shown}..."


def listed(names: Iterable[object], limit: int = 4) -> str:
    """Return the first few names in backquotes, and how many more there are.

    >>> listed("abcdef")
    '`a`, `b`, `c`, `d` and 2 more'
    """
    names = list(names)
    text = ", ".join(f"`{printable(name)}`" for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")
