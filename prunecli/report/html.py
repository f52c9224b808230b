"""Parts of a page -> one HTML text: tables that sort, lists, all escaped. Nothing is loaded."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from prunecli.report.page_look import SCRIPT, STYLE
from prunecli.report.svg import RULES, harmless, shorten

LONGEST = 160
"""How many letters of a name, or of a value, are written out."""
ROOM = 8_000
"""How many letters a list or a table may take where nothing else is said."""


_FIGURE = re.compile(r"(?P<number>-?\d[\d,]*(\.\d+)?)(?P<unit> ?[kMGTP]?B| ms|%|[KMGTP]|)(?= |$)")
_ARROW = "\N{NO-BREAK SPACE}\N{RIGHTWARDS ARROW}\N{NO-BREAK SPACE}"
_NOTHING = "\N{EN DASH}"
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


@dataclass(frozen=True)
class Cell:
    """One field of a table."""

    text: str
    value: float | None = None
    """What the field sorts by, where it is a number."""
    full: str | None = None
    """Shown on hovering."""
    is_best: bool = False


def figure(text: str) -> Cell:
    """Return a field that sorts by the number its text begins with, if it does.

    >>> figure("1.5K").value, figure("90 kB").value, figure("3.1 ms (50.0%)").value, figure("3x3").value
    (1500.0, 90000.0, 3.1, None)
    """
    found = _FIGURE.match(text)
    if found is None:
        return Cell(text)
    letter = found["unit"].strip().removesuffix("B").upper()
    return Cell(text, float(found["number"].replace(",", "")) * 1000 ** _POWERS.get(letter, 0))


def whole_page(title: str, parts: Iterable[str]) -> str:
    """Return the page; its script runs by its digest alone, and nothing may be loaded."""
    digest = b64encode(sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    head = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{name_of(title)}</title><style>{STYLE}{RULES}</style></head><body><main>",
    )
    return "\n".join((*head, *parts, f"</main><script>{SCRIPT}</script></body></html>")) + "\n"


def name_of(text: str) -> str:
    """Return a name, escaped, without its middle where it is very long."""
    return harmless(shorten(text, LONGEST))


def words(text: str) -> str:
    """Return a line of text, escaped, with arrows that are not torn apart, and code where it says so.

    >>> words("See `--keep`: <a> -> b").replace(_ARROW, "=>")
    'See <code>--keep</code>: &lt;a&gt;=>b'
    """
    text = harmless(shorten(text, 8 * LONGEST)).replace(" -&gt; ", _ARROW)
    return re.sub("`([^`]+)`", r"<code>\1</code>", text)


def listed(lines: Iterable[str], room: int = ROOM, kind: str = "") -> Iterator[str]:
    """Yield a list of lines that are HTML already; those for which there is no room are counted."""
    items = [line if line.startswith("<li") else f"<li>{line}</li>" for line in lines]
    if items:
        fitting = how_many_fit(items, room)
        yield f'<ul class="{kind}">' if kind else "<ul>"
        yield from items[:fitting]
        yield "</ul>"
        yield from _left_out(len(items) - fitting, "line")


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[Cell | str]],
    label: str,
    room: int = ROOM,
    texts: Sequence[int] = (0,),
    sorts: bool = True,
) -> Iterator[str]:
    """Yield a table, which sorts where scripts run; rows for which there is no room are counted.

    Args:
        titles: Of the columns.
        rows: Their fields; texts are escaped here.
        label: What is read out when the table is entered.
        room: How many letters the rows may take.
        texts: The columns that hold words, and stand on the left.
        sorts: Whether its rows may stand in any order.
    """
    left = ["" if column not in texts else ' class="left"' for column in range(len(titles))]
    head = "".join(
        f'<th scope="col"{look}>{harmless(title)}</th>' for title, look in zip(titles, left, strict=True)
    )
    lines = [_row(row, left) for row in rows]
    fitting = how_many_fit(lines, room)
    yield f'<div class="wide" tabindex="0" role="region" aria-label="{harmless(label)}">'
    yield f"<table{' class=sorts' * sorts}><thead><tr>{head}</tr></thead><tbody>"
    yield from lines[:fitting]
    yield "</tbody></table></div>"
    yield from _left_out(len(lines) - fitting, "row")


def facts(title: str, values: Mapping[str, object]) -> Iterator[str]:
    """Yield a section of names and values; nothing where there are none."""
    if values:
        pairs = [
            f"<dt>{name_of(name)}</dt><dd>{words(shown(value)) or _NOTHING}</dd>"
            for name, value in values.items()
        ]
        fitting = how_many_fit(pairs, 2 * ROOM)
        yield f'<h2>{title}</h2><dl class="facts">'
        yield from pairs[:fitting]
        yield "</dl>"
        yield from _left_out(len(pairs) - fitting, "line")


def shown(value: object) -> str:
    """Write a value of the settings.

    >>> shown({"lr": 0.1, "seeds": [0, 1]})
    'lr=0.1, seeds=0, 1'
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={shown(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value))
    return str(value)


def how_many_fit(lines: Sequence[str], room: int) -> int:
    """Return how many of the lines, from the first, take at most so many letters.

    >>> how_many_fit(["ab", "cd", "ef"], 4)
    2
    """
    for number, line in enumerate(lines):
        room -= len(line.encode())
        if room < 0:
            return number
    return len(lines)


def _row(row: Sequence[Cell | str], left: Sequence[str]) -> str:
    cells = [Cell(cell) if isinstance(cell, str) else cell for cell in row]
    first, *others = cells
    name = name_of(first.text).replace(".", ".<wbr>")
    parts = [f'<tr><th scope="row"{_marks(first)}>{name}</th>']
    for cell, look in zip(others, left[1:], strict=True):
        kind = ' class="best"' if cell.is_best else look
        parts.append(f"<td{kind}{_marks(cell)}>{name_of(cell.text)}</td>")
    return "".join((*parts, "</tr>"))


def _marks(cell: Cell) -> str:
    value = f' data-v="{cell.value:.12g}"' if cell.value is not None else ""
    return value + (f' title="{name_of(cell.full)}"' if cell.full else "")


def _left_out(count: int, what: str) -> Iterator[str]:
    if count:
        verb = "is" if count == 1 else "are"
        yield f"<p>{count:,} more {what}{'s' * (count > 1)} {verb} in the JSON.</p>"
