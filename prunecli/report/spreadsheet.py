"""Rows -> comma-separated values that a spreadsheet opens without running anything in them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress

_FORMULA = ("=", "+", "-", "@", "\t")
"""What a text begins with that a spreadsheet would run."""


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows as CSV: numbers in full, nothing for None, and no text that is a formula.

    >>> print(csv_text([("layer", "units"), ("=1+1", -3), ("a,b", None)]), end="")
    layer,units
    '=1+1,-3
    "a,b",
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    """Return a cell; a text that would be a formula gets an apostrophe in front, which marks it as text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = "".join(c if c.isprintable() or c in "\n\t" else " " for c in value)
    if text.startswith(_FORMULA):
        with suppress(ValueError):
            float(text)
            return text
        return f"'{text}"
    return text
