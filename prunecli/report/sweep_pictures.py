"""A sweep -> trade-off curves: what each method comes to over the compression, as one SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from prunecli.report.points import Point, Spread, TradeOff
from prunecli.report.svg import Chart, Line, draw_lines

_HUES = (
    "#2a78d6", "#d9603b", "#1e9a6c", "#8a5bd0", "#b88a12", "#c8478f", "#2398a6", "#8b6b4a", "#7a9a1f",
    "#c2404c", "#5f7488", "#a35fb5",
)  # fmt: skip
"""One for each method, in their order; all stand out on light and dark grounds."""
_STEPS = (1, 1.1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5)
"""Places to name on an axis that spans less than two doublings."""

_Read = Callable[[Point], Spread | None]


def sweep_picture(found: TradeOff) -> str:
    """Return the curves, one chart below the other; of the other scope dashed, in the method's colour."""
    return draw_lines(tuple(_charts(found)))


def _charts(found: TradeOff) -> Iterator[Chart]:
    points = found.points
    methods = tuple(dict.fromkeys(point.method for point in points))
    asked = "compression asked for, r (log)"
    macs = "MACs of the dense model / MACs with what is left (log)"
    good: _Read = (lambda point: point.top1) if _any(points, "top1") else (lambda point: point.loss)
    title, is_share = ("Accuracy (top-1)", True) if _any(points, "top1") else ("Loss", False)
    if _any(points, "top1") or _any(points, "loss"):
        if found.granularity == "weight":
            yield _chart(f"{title} by compression", points, _asked_for, good, asked, is_share, methods)
        else:
            params = "parameters of the dense model / parameters left (log)"
            yield _chart(f"{title} by parameters", points, _params_saved, good, params, is_share, methods)
        yield _chart(f"{title} by MACs", points, _macs_saved, good, macs, is_share, methods)
    else:
        yield _chart("MACs left", points, _asked_for, lambda point: point.macs_left, asked, True, methods)
    collapsing = {point.name for point in points if point.collapsed_layers}
    if collapsing:
        yield _chart(
            "Layers without any weight left",
            [point for point in points if point.name in collapsing],
            _asked_for,
            _mean_collapsed,
            asked,
            False,
            methods,
        )


def _asked_for(point: Point) -> float:
    return point.ratio


def _params_saved(point: Point) -> float | None:
    return _inverse(point.params_left)


def _macs_saved(point: Point) -> float | None:
    return _inverse(point.macs_left)


def _mean_collapsed(point: Point) -> Spread | None:
    """Return the mean alone: a deviation of counts near zero would reach below it."""
    return replace(point.collapsed, deviation=None) if point.collapsed is not None else None


def _chart(
    title: str,
    points: Sequence[Point],
    read_x: Callable[[Point], float | None],
    read_y: _Read,
    x_label: str,
    is_share: bool,
    methods: Sequence[str],
) -> Chart:
    """Return a line per method, those named first that end highest; `methods` have a colour each."""
    lines = []
    scopes = {name: sorted({p.scope for p in points if p.method == name}) for name in methods}
    for name in dict.fromkeys(point.name for point in points):
        own = [point for point in points if point.name == name]
        places = sorted(
            ((x, y) for point in own if (x := read_x(point)) is not None and (y := read_y(point))),
            key=lambda place: place[0],
        )
        if places:
            method, scope = own[0].method, own[0].scope
            lines.append(
                Line(
                    name,
                    tuple((x, y.mean) for x, y in places),
                    spreads=tuple(y.deviation for _, y in places),
                    colour=_HUES[methods.index(method) % len(_HUES)],
                    is_dashed=len(scopes[method]) > 1 and scope != "global",
                )
            )
    lines.sort(key=lambda line: -(line.points[-1][1] or 0))
    ticks = _log_ticks([x for line in lines for x, _ in line.points])
    return Chart(title, tuple(lines), x_label=x_label, x_is_whole=False, is_share=is_share, x_ticks=ticks)


def _log_ticks(xs: Sequence[float]) -> tuple[float, ...]:
    """Return doublings, or finer steps where there are few; one of two beyond ten.

    >>> _log_ticks([1.0, 9.0]), _log_ticks([1.0, 1.6])
    ((1.0, 2.0, 4.0, 8.0), (1, 1.1, 1.25, 1.5))
    """
    low, high = min(xs, default=1.0), max(xs, default=1.0)
    if high < 4:
        return tuple(step for step in _STEPS if low * 0.999 <= step <= high * 1.001) or (float(f"{low:.3g}"),)
    doublings = [2.0**power for power in range(60) if low * 0.999 <= 2.0**power <= high * 1.001]
    return tuple(doublings[:: 1 + len(doublings) // 11])


def _any(points: Sequence[Point], name: str) -> bool:
    return any(getattr(point, name) is not None for point in points)


def _inverse(value: Spread | None) -> float | None:
    return 1 / value.mean if value is not None and value.mean > 0 else None
