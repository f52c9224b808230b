"""Lines and heat maps as SVG text: no script, nothing from elsewhere, readable on light and dark grounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, zip_longest
from math import ceil, floor, isfinite, log, log10

WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 176, 50, 44
_HEIGHT = 210
"""Of the area that lines are drawn in; more where the legend needs it."""
_LEGEND_STEP = 16
_HEAD, _CELL, _ROW = 70, 92, 22
_LETTER = 6.2
"""Roughly how wide a letter of the small text is."""

RULES = """
.pc-ground{fill:#fcfcfb}.pc-title{fill:#0b0b0b;font-size:14px;font-weight:600}.pc-text{fill:#52514e;font-size:11px}
.pc-grid{stroke:#e6e5df}.pc-axis{stroke:#a8a69d}.pc-mark{stroke:#a8a69d;stroke-dasharray:3 3}
.pc-main{stroke:#0b0b0b}.pc-main-dot{fill:#0b0b0b}
@media screen and (prefers-color-scheme:dark){.pc-ground{fill:#1a1a19}.pc-title{fill:#fff}
.pc-text{fill:#c3c2b7}.pc-grid{stroke:#333330}.pc-axis,.pc-mark{stroke:#77756d}.pc-main{stroke:#fff}
.pc-main-dot{fill:#fff}}
"""
"""How the parts of a picture look; on paper always as on a light ground."""
_HUES = ("#2a78d6", "#8a5bd0", "#c8478f", "#d9603b", "#b88a12")
"""From the first line to the last; all stand out on both grounds."""
_TOLD = 160
"""How many letters of a long name are told on hovering."""
_PALE, _DEEP = (0xE3, 0xED, 0xFA), (0x17, 0x4F, 0x96)
"""The ends of a heat map's scale."""


@dataclass(frozen=True)
class Line:
    """A row of points; where y is None the line is broken."""

    name: str
    points: tuple[tuple[float, float | None], ...]
    is_main: bool = False
    """Drawn in ink and thick: what the others are parts of."""
    spreads: tuple[float | None, ...] = ()
    """How far up and down each point scatters: a whisker there, and a dot at every point."""
    colour: str | None = None
    """Instead of one by its place among the lines."""
    is_dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line, and what begins there."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes."""

    title: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    x_label: str = "epoch"
    x_is_whole: bool = True
    is_share: bool = False
    """Whether y is a share of 1, to be written in percent."""
    x_ticks: tuple[float, ...] = ()
    """Where x is on a logarithmic scale: the places to name on it."""


@dataclass(frozen=True)
class HeatMap:
    """A number for each row and column; None leaves the cell empty."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    """One tuple per row."""


def draw_lines(charts: Sequence[Chart]) -> str:
    """Return the charts, one below the other."""
    parts: list[str] = []
    top = 0.0
    for chart in charts:
        height = max(_HEIGHT, _LEGEND_STEP * len(chart.lines))
        parts += _panel(chart, top, height)
        top += _TOP + height + _BOTTOM
    return _svg(WIDTH, top, ", ".join(chart.title for chart in charts), parts)


def draw_heat_map(heat: HeatMap) -> str:
    """Return a table of coloured cells with their numbers, and the scale."""
    left = 24 + _LETTER * max((len(shorten(row)) for row in heat.rows), default=0)
    found = [value for row in heat.values for value in row if value is not None]
    low, high = (floor(min(found, default=0) * 10) / 10, ceil(max(found, default=1) * 10) / 10)
    high = high if high > low else low + 0.1
    width = max(left + _CELL * len(heat.columns) + 24, 400)
    parts = [f'<text class="pc-title" x="16" y="24">{harmless(heat.title)}</text>']
    parts += _scale(44, low, high)
    for column, name in enumerate(heat.columns):
        parts.append(_text(left + _CELL * (column + 0.5), _HEAD + 8, name, "middle"))
    for number, (row, values) in enumerate(zip(heat.rows, heat.values, strict=True)):
        y = _HEAD + 18 + _ROW * number
        parts.append(_text(left - 8, y + 15, shorten(row), "end", full=row))
        for column, value in enumerate(values):
            if value is not None:
                where = f"{row}, {heat.columns[column]}: {value:.4f}"
                parts += _cell(left + _CELL * column, y, value, (value - low) / (high - low), where)
    return _svg(width, _HEAD + 18 + _ROW * len(heat.rows) + 18, heat.title, parts)


def harmless(text: str) -> str:
    r"""Escape a text for XML and HTML: names may come from anywhere, and control characters are no text.

    >>> harmless("<b>\x1b[31m")
    '&lt;b&gt; [31m'
    """
    return escape(text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text))


def inline(picture: str) -> str:
    """Return a picture as a part of a page that has `RULES` already."""
    return picture.replace(f"<style>{RULES}</style>\n", "", 1)


def shorten(name: str, most: int = 22) -> str:
    """Leave out the middle of a long name.

    >>> shorten("features.denseblock4.denselayer16.conv1", 16)
    'feature\N{HORIZONTAL ELLIPSIS}16.conv1'
    """
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-(most - 1 - half) :]}"


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    size = f'width="{_n(width)}" height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{harmless(label)}" '
    font = 'font-family="system-ui,-apple-system,Segoe UI,Helvetica,Arial,sans-serif">'
    ground = f'<rect class="pc-ground" width="{_n(width)}" height="{_n(height)}"/>'
    return "\n".join((head + font, f"<style>{RULES}</style>", ground, *parts, "</svg>")) + "\n"


@dataclass(frozen=True)
class _Axes:
    """Turns numbers into places."""

    x: tuple[float, float]
    y: tuple[float, float]
    top: float
    height: float
    is_log: bool = False
    """Whether equal steps of x are equal factors."""

    def at_x(self, value: float) -> float:
        low, high = self.x
        if self.is_log:
            low, high, value = log(low), log(high), log(value)
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def at_y(self, value: float) -> float:
        low, high = self.y
        return self.top + (1 - (value - low) / (high - low)) * self.height


def _panel(chart: Chart, top: float, height: float) -> Iterator[str]:
    points = [point for line in chart.lines for point in line.points if point[1] is not None]
    xs = [x for x, _ in points] or [1.0 if chart.x_ticks else 0.0]
    ys = [min(max(y, 0.0), 1.0) if chart.is_share else y for line in chart.lines for y in _reach(line)] or [
        0.0
    ]
    x_ticks = chart.x_ticks or round_numbers(min(xs), max(xs), 10, chart.x_is_whole)
    y_ticks = round_numbers(min(ys), max(ys), 5, False)
    axes = _Axes(_padded(xs, chart), (y_ticks[0], y_ticks[-1]), top + _TOP, height, bool(chart.x_ticks))
    yield f'<text class="pc-title" x="16" y="{_n(top + 24)}">{harmless(chart.title)}</text>'
    yield from _grid(chart, axes, x_ticks, y_ticks)
    yield from _marks(chart.marks, axes)
    parts = [line for line in chart.lines if not line.is_main]
    for number, line in enumerate(chart.lines):
        colour = line.colour or ("" if line.is_main else _hue(parts.index(line), len(parts)))
        yield from _line(line, colour, axes)
        if len(chart.lines) > 1 or line.colour:
            yield from _legend(line, colour, WIDTH - _RIGHT + 14, axes.top + 6 + _LEGEND_STEP * number)


def _reach(line: Line) -> list[float]:
    """Return the points of a line, and the ends of its whiskers."""
    pairs = zip_longest((y for _, y in line.points), line.spreads)
    return [y + side * (spread or 0) for y, spread in pairs if y is not None for side in (-1, 1)]


def _padded(xs: Sequence[float], chart: Chart) -> tuple[float, float]:
    low, high = min(xs), max(xs)
    if chart.x_ticks:
        factor = (high / low) ** 0.02 if high > low else 1.5
        return low / factor, high * factor
    pad = (high - low) * 0.02 or 0.5
    return low - pad, high + pad


def _grid(chart: Chart, axes: _Axes, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> Iterator[str]:
    right, bottom = WIDTH - _RIGHT, axes.top + axes.height
    digits = _digits(y_ticks, 100 if chart.is_share else 1)
    for tick in y_ticks:
        y = axes.at_y(tick)
        kind = "pc-axis" if tick == y_ticks[0] else "pc-grid"
        yield f'<line class="{kind}" x1="{_LEFT}" x2="{right}" y1="{_n(y)}" y2="{_n(y)}"/>'
        shown = f"{100 * tick:.{digits}f} %" if chart.is_share else f"{tick:.{digits}f}"
        yield _text(_LEFT - 7, y + 4, shown, "end")
    x_digits = _digits(x_ticks, 1)
    for tick in x_ticks:
        if axes.x[0] <= tick <= axes.x[1]:
            shown = f"{tick:g}" if axes.is_log else f"{tick:.{x_digits}f}"
            yield _text(axes.at_x(tick), bottom + 16, shown, "middle")
    yield _text((_LEFT + right) / 2, bottom + 33, chart.x_label, "middle")


def _marks(marks: Sequence[Mark], axes: _Axes) -> Iterator[str]:
    """Yield what begins where, the text only as long as there is room until the next one."""
    ends = [*(axes.at_x(mark.at) for mark in marks[1:]), float(WIDTH - _RIGHT)]
    for number, (mark, end) in enumerate(zip(marks, ends, strict=False)):
        x = max(axes.at_x(mark.at), _LEFT) if number == 0 else axes.at_x(mark.at)
        if number > 0:
            below = axes.top + axes.height
            yield (
                f'<line class="pc-mark" x1="{_n(x)}" x2="{_n(x)}" y1="{_n(axes.top - 12)}" y2="{_n(below)}"/>'
            )
        room = (end - x - 6) / _LETTER
        text = next((text for text in (mark.text, mark.text.split()[-1]) if len(text) <= room), "")
        if text:
            yield _text(x + 4, axes.top - 5, text, "start", full=mark.text)


def _line(line: Line, colour: str, axes: _Axes) -> Iterator[str]:
    look = 'class="pc-main" stroke-width="2.5"' if line.is_main else f'stroke="{colour}" stroke-width="1.6"'
    look += ' stroke-dasharray="5 3"' if line.is_dashed else ""
    dot = 'class="pc-main-dot"' if line.is_main else f'fill="{colour}"'
    for (x_value, y_value), spread in zip(line.points, line.spreads, strict=False):
        if y_value is not None:
            yield from _whisker(axes.at_x(x_value), y_value, spread, look, dot, axes)
    for is_there, piece in groupby(line.points, key=lambda point: point[1] is not None):
        if not is_there:
            continue
        places = [(axes.at_x(x), axes.at_y(y)) for x, y in piece if y is not None]
        if len(places) == 1:
            x, y = places[0]
            yield f'<circle {dot} cx="{_n(x)}" cy="{_n(y)}" r="2.5"/>'
        else:
            path = " ".join(f"{_n(x)},{_n(y)}" for x, y in places)
            yield f'<polyline fill="none" {look} stroke-linejoin="round" points="{path}"/>'


def _whisker(x: float, y: float, spread: float | None, look: str, dot: str, axes: _Axes) -> Iterator[str]:
    """Yield a dot, and how far it scatters."""
    if spread:
        low, high = max(y - spread, axes.y[0]), min(y + spread, axes.y[1])
        ends = f'y1="{_n(axes.at_y(low))}" y2="{_n(axes.at_y(high))}"'
        yield f'<line {look.partition(" stroke-width")[0]} opacity="0.5" x1="{_n(x)}" x2="{_n(x)}" {ends}/>'
    yield f'<circle {dot} cx="{_n(x)}" cy="{_n(axes.at_y(y))}" r="2.2"/>'


def _legend(line: Line, colour: str, x: float, y: float) -> Iterator[str]:
    look = 'class="pc-main" stroke-width="2.5"' if line.is_main else f'stroke="{colour}" stroke-width="2"'
    look += ' stroke-dasharray="5 3"' if line.is_dashed else ""
    yield f'<line {look} x1="{_n(x)}" x2="{_n(x + 16)}" y1="{_n(y)}" y2="{_n(y)}"/>'
    yield _text(x + 22, y + 4, shorten(line.name), "start", full=line.name)


def _scale(x: float, low: float, high: float) -> Iterator[str]:
    yield _text(x - 6, 48, f"{low:.1f}", "end")
    for step in range(24):
        yield f'<rect x="{_n(x + 6 * step)}" y="38" width="6.2" height="12" fill="{_shade(step / 23)}"/>'
    yield _text(x + 150, 48, f"{high:.1f}", "start")


def _cell(x: float, y: float, value: float, share: float, where: str) -> Iterator[str]:
    ink = "#ffffff" if share > 0.5 else "#0b0b0b"
    size = f'width="{_CELL - 2}" height="{_ROW - 2}"'
    yield (
        f'<rect x="{_n(x + 1)}" y="{_n(y + 1)}" {size} rx="2" fill="{_shade(share)}">'
        f"<title>{harmless(where)}</title></rect>"
    )
    yield (
        f'<text x="{_n(x + _CELL / 2)}" y="{_n(y + 15)}" text-anchor="middle" font-size="11" '
        f'fill="{ink}">{value:.2f}</text>'
    )


def _text(x: float, y: float, text: str, anchor: str, full: str | None = None) -> str:
    title = f"<title>{harmless(shorten(full, _TOLD))}</title>" if full is not None and full != text else ""
    place = f'x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"'
    return f'<text class="pc-text" {place}>{title}{harmless(text)}</text>'


def round_numbers(low: float, high: float, most: int, is_whole: bool) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, about `most` of them.

    >>> round_numbers(0.31, 0.52, 5, False)
    [0.3, 0.35, 0.4, 0.45, 0.5, 0.55]
    """
    if not (isfinite(low) and isfinite(high)):
        return [0.0, 1.0]
    span = high - low
    if span <= 1e-9 * max(abs(high), 1e-3):  # the same number, but for rounding
        span = abs(high) * 0.1 if abs(high) > 1e-6 else 1.0
    rough = span / most
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    step = max(step, 1.0) if is_whole else step
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _digits(ticks: Sequence[float], times: int) -> int:
    """Return how many digits behind the point tell the ticks apart.

    >>> _digits([0.3, 0.35], 1), _digits([0.3, 0.35], 100)
    (2, 0)
    """
    shown = [tick * times for tick in ticks]
    return next(
        (digits for digits in range(6) if all(abs(round(tick, digits) - tick) < 1e-7 for tick in shown)), 6
    )


def _hue(number: int, count: int) -> str:
    """Return the colour of a line: those of the palette, spread over all lines."""
    place = number / max(count - 1, 1) * (len(_HUES) - 1)
    before = min(int(place), len(_HUES) - 2)
    ends = [tuple(int(hue[i : i + 2], 16) for i in (1, 3, 5)) for hue in _HUES[before : before + 2]]
    return _between(ends[0], ends[1], place - before)


def _shade(share: float) -> str:
    return _between(_PALE, _DEEP, share)


def _between(start: Sequence[int], end: Sequence[int], share: float) -> str:
    mixed = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _n(number: float) -> str:
    """Write a place with one digit behind the point at most.

    >>> _n(12.04), _n(12.36)
    ('12', '12.4')
    """
    return f"{number:.1f}".removesuffix(".0")
