"""How a training run went -> pictures, from the report's numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prunecli.history import EpochRow
from prunecli.report.svg import Chart, HeatMap, Line, Mark, draw_heat_map, draw_lines
from prunecli.report.values import TrainingFacts


def training_pictures(facts: TrainingFacts) -> dict[str, str]:
    """Return the pictures that there is something to draw in: file name -> SVG.

    `curves.svg` shows loss, accuracy and units by epoch, `density.svg` the share of activations that are
    not zero by layer and epoch, `colormap.svg` the same by layer and generation.
    """
    pictures = {}
    if facts.rows:
        pictures["curves.svg"] = draw_lines(tuple(_curves(facts.rows)))
    if any(row.density for row in facts.rows):
        pictures["density.svg"] = draw_lines([_densities(facts.rows)])
        pictures["colormap.svg"] = draw_heat_map(_colormap(facts))
    return pictures


def _curves(rows: Sequence[EpochRow]) -> Iterator[Chart]:
    marks = _phases(rows)
    losses = (("training", lambda row: row.loss), ("test", lambda row: row.test_loss))
    hits = (("training", lambda row: row.top1), ("test", lambda row: row.test_top1))
    yield Chart("Loss", _lines(rows, losses), marks)
    if lines := _lines(rows, hits):
        yield Chart("Accuracy (top-1)", lines, marks, is_share=True)
    if len({row.units for row in rows}) > 1:
        yield Chart("Units left", _lines(rows, (("units", lambda row: row.units),)), marks)


def _densities(rows: Sequence[EpochRow]) -> Chart:
    layers = dict.fromkeys(name for row in rows for name in row.density)
    lines = [(name, lambda row, name=name: row.density.get(name)) for name in layers]
    total = _lines(rows, (("all layers", lambda row: row.total_density),), is_main=True)
    return Chart("Share of activations that are not zero", (*_lines(rows, lines), *total), _phases(rows))


def _colormap(facts: TrainingFacts) -> HeatMap:
    """Put side by side what each generation came to in its last epoch."""
    last = {row.phase: row for row in facts.rows if row.density}
    layers = dict.fromkeys(name for row in last.values() for name in row.density)
    values = [tuple(row.density.get(layer) for row in last.values()) for layer in layers]
    totals = tuple(row.total_density for row in last.values())
    return HeatMap(
        "Share of activations that are not zero",
        (*layers, "all layers"),
        tuple(last),
        (*values, totals),
    )


def _lines(
    rows: Sequence[EpochRow],
    readings: Sequence[tuple[str, Callable[..., float | None]]],
    is_main: bool = False,
) -> tuple[Line, ...]:
    """Return a line for each reading that was ever taken; phases are not joined."""
    found = []
    for name, read in readings:
        points: list[tuple[float, float | None]] = []
        for number, row in enumerate(rows):
            if number and row.phase != rows[number - 1].phase:
                points.append((row.epoch - 0.5, None))
            points.append((row.epoch, read(row)))
        if any(y is not None for _, y in points):
            found.append(Line(name, tuple(points), is_main))
    return tuple(found)


def _phases(rows: Sequence[EpochRow]) -> tuple[Mark, ...]:
    """Mark where each phase begins; a single one needs no mark."""
    marks = [
        Mark(row.epoch - 0.5, row.phase)
        for number, row in enumerate(rows)
        if number == 0 or row.phase != rows[number - 1].phase
    ]
    return tuple(marks) if len(marks) > 1 else ()
