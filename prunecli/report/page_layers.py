"""The layers of a report -> bars, and a table that sorts, as parts of its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prunecli.report.bars import BarColumn, draw_bars
from prunecli.report.html import Cell, table
from prunecli.report.masks import is_cut, weights_of
from prunecli.report.numbers import human, human_bytes, percent
from prunecli.report.text import macs_share
from prunecli.report.training_text import shows_layers
from prunecli.report.values import Change, LayerChange, Report

MOST_BARS = 40
_MOST, _LEAST = 150_000, 10_000
"""How many letters the table may take."""
_TO = "\N{RIGHTWARDS ARROW}"


def layer_section(report: Report, room: int) -> Iterator[str]:
    """Yield the bars of the layers that compute most, then all in a table; nothing where nothing changed."""
    if not report.layers or not shows_layers(report):
        return
    picture = "\n".join(_bars(report))
    yield "<h2>Layers</h2>"
    yield picture
    titles, rows = _table(report)
    yield f"<details open><summary>All {len(report.layers):,} layers</summary>"
    left = min(max(room - len(picture.encode()), _LEAST), _MOST)
    yield from table(titles, rows, "Layers", left, texts=(0, 1))
    yield "</details>"


def _bars(report: Report) -> Iterator[str]:
    drawn = _worth_drawing(report.layers)
    columns = [column for column in _columns(report, drawn) if any(column.changes)]
    if columns:
        which = "with arithmetic" if len(drawn) < len(report.layers) else "of the network"
        text = f"The {len(drawn)} layers {which}" if len(drawn) > 1 else "The layer"
        if len(drawn) == MOST_BARS:
            text = f"The {MOST_BARS} of {len(report.layers):,} layers with most MACs"
        yield f"<figure><figcaption>{text}: before in outline, what is left filled.</figcaption>"
        yield draw_bars("Layers before and after", [layer.name or "(root)" for layer in drawn], columns)
        yield "</figure>"


def _worth_drawing(layers: Sequence[LayerChange]) -> tuple[LayerChange, ...]:
    """Return the layers that compute; where they are too many, those with most MACs, in their order."""
    computing = [layer for layer in layers if layer.macs.before or layer.macs.after] or list(layers)
    most = sorted(computing, key=lambda layer: -max(layer.macs.before, layer.macs.after))[:MOST_BARS]
    names = {layer.name for layer in most}
    return tuple(layer for layer in computing if layer.name in names)[:MOST_BARS]


def _columns(report: Report, layers: Sequence[LayerChange]) -> Iterator[BarColumn]:
    masked = weights_of(report)
    if report.masks is None or is_cut(report):
        yield BarColumn("units", "units", tuple(layer.units for layer in layers), lambda n: f"{n:,}")
    if masked:
        weights = [masked.get(layer.name) for layer in layers]
        changes = tuple(Change(one.size, one.kept) if one else None for one in weights)
        yield BarColumn("weights", "weights", changes, human)
    yield BarColumn("macs", "MACs", tuple(layer.macs for layer in layers), human)
    yield BarColumn("params", "params", tuple(layer.params for layer in layers), human)


def _table(report: Report) -> tuple[list[str], list[list[Cell | str]]]:
    masked, has_units = weights_of(report), report.masks is None or is_cut(report)
    has_memory = any(layer.activation_bytes for layer in report.layers)
    titles = ["layer", "type", *["units"] * has_units, *["weights", "left"] * bool(masked)]
    titles += ["params", "MACs", "MACs left", "share", *["activations"] * has_memory]
    rows = []
    for layer in report.layers:
        row: list[Cell | str] = [layer.name or "(root)", layer.kind]
        row += [_change(layer.units, "{:,}".format)] if has_units else []
        if masked:
            one = masked.get(layer.name)
            row += [_change(Change(one.size, one.kept), human), _share(one.share)] if one else ["", ""]
        has_macs = bool(layer.macs.before or layer.macs.after)
        row += [_change(layer.params, human), _change(layer.macs, human)]
        row += [_share(layer.macs.ratio), _share(macs_share(layer, report))] if has_macs else ["", ""]
        row += [_change(layer.activation_bytes, human_bytes)] if has_memory else []
        rows.append(row)
    return titles, rows


def _change(change: Change | None, write: Callable[[int], str]) -> Cell | str:
    if change is None:
        return ""
    text = write(change.after)
    if change.before != change.after:
        text = f"{write(change.before)} {_TO} {text}"
    return Cell(text, change.after)


def _share(share: float) -> Cell:
    return Cell(percent(share), share)
