"""Text -> lines that fit a terminal, and lines as they are to a console. Needs rich, and nothing of ours."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from prunecli.cli.streams import plain

LEAST_COLUMNS = 16
"""What a text keeps even where it is then wider than the terminal."""


def paragraph(text: str, width: int, lead: tuple[str, str] = ("", ""), style: str = "") -> list[Text]:
    """Break a text between words where it is wider than the terminal, all lines right of its lead.

    Args:
        text: One paragraph; control characters are taken out.
        width: Columns of the terminal.
        lead: What stands before the first line, and its style.
        style: Style of the text.
    """
    room = max(width - len(lead[0]), LEAST_COLUMNS)
    parts = textwrap.wrap(plain(text), room, break_long_words=False, break_on_hyphens=False) or [""]
    leads = (lead, *[(" " * len(lead[0]), "")] * (len(parts) - 1))
    return [Text.assemble(before, (part, style)) for before, part in zip(leads, parts, strict=True)]


def print_lines(lines: Iterable[Text], console: Console) -> None:
    """Print lines as they are: nothing is wrapped or cut."""
    together = list(lines)
    if together:  # in one go: printing takes far longer line by line
        console.print(Text("\n").join(together), soft_wrap=True, highlight=False)
