"""Numbers per layer, before and after -> outlined and filled bars as one SVG that grows with the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prunecli.report.numbers import percent
from prunecli.report.svg import harmless, shorten
from prunecli.report.values import Change

_LONG, _SHORT = 32, 15
"""How many letters of a name there is room for on a desk, and on a telephone."""
_TOLD = 80
"""How many letters of it are told on hovering."""
_FIRST = 33.0
"""Where the first column begins, in percent of the width."""
_ROW, _HEAD, _THICK = 22, 28, 10


@dataclass(frozen=True)
class BarColumn:
    """One kind of bar: its number in each row, None where a row has none."""

    key: str
    """Marks the bars in the picture, for programs."""
    title: str
    changes: tuple[Change | None, ...]
    write: Callable[[int], str]


def draw_bars(label: str, names: Sequence[str], columns: Sequence[BarColumn]) -> str:
    """Return a row per name: the dense number in outline, what is left of it filled.

    All bars of a column share a scale. Texts keep their size on narrow pages, where shares are left out.
    """
    height = _HEAD + _ROW * len(names) + 4
    width = (100 - _FIRST) / len(columns)
    parts = [
        f'<text class="head" x="{_FIRST + width * number:.2f}%" y="14">{harmless(column.title)}</text>'
        for number, column in enumerate(columns)
    ]
    for number, name in enumerate(names):
        parts += _row(number, name, columns, width)
    head = f'<svg class="fluid" width="100%" height="{height}" role="img" aria-label="{harmless(label)}">'
    return "\n".join((head, *parts, "</svg>"))


def draw_name(name: str, y: int) -> Iterator[str]:
    """Yield the name of a row: as much of it as there is room for on wide and on narrow pages."""
    if len(name) <= _SHORT:
        yield f'<text y="{y}">{harmless(name)}</text>'
        return
    end = "\N{HORIZONTAL ELLIPSIS}" + name[-(_SHORT - 1) :]  # what tells layers apart
    for look, text in (("roomy", shorten(name, _LONG)), ("tight", end)):
        yield f'<text class="{look}" y="{y}">{harmless(text)}</text>'


def _row(number: int, name: str, columns: Sequence[BarColumn], width: float) -> Iterator[str]:
    y = _HEAD + _ROW * number
    said = [
        f"{column.title} {column.write(change.before)} \N{RIGHTWARDS ARROW} {column.write(change.after)}"
        for column in columns
        if (change := column.changes[number]) is not None
    ]
    yield f"<g><title>{harmless(shorten(name, _TOLD))}: {harmless(', '.join(said))}</title>"
    yield f'<rect class="hit" y="{y}" width="100%" height="{_ROW}"/>'
    yield from draw_name(name, y + 15)
    for place, column in enumerate(columns):
        if (change := column.changes[number]) is not None:
            yield from _bar(column, change, _FIRST + width * place, y + (_ROW - _THICK) // 2, width)
    yield "</g>"


def _bar(column: BarColumn, change: Change, x: float, y: int, width: float) -> Iterator[str]:
    most = max(max(each.before, each.after) for each in column.changes if each is not None) or 1
    dense, kept = (0.57 * width * number / most for number in (change.before, change.after))
    place = f'x="{x:.2f}%" y="{y}" height="{_THICK}"'
    yield f'<rect class="kept" data-bar="{column.key}" {place} width="{kept:.2f}%"/>'
    yield f'<rect class="dense" {place} width="{max(dense, 0.01):.2f}%"/>'
    end = x + max(dense, kept) + 0.8
    yield f'<text class="roomy" x="{end:.2f}%" y="{y + _THICK - 1}">{percent(change.ratio)}</text>'
