"""Report -> text for a terminal or a pipe. The one file that knows colours, human units and column widths.

On a terminal the table is made to fit: long types and names are folded in the middle, then the columns go
that matter least; a number is never cut. In a pipe nothing is folded or dropped, unless COLUMNS asks for it.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from prunecli.cli.lines import paragraph, print_lines
from prunecli.cli.streams import asked_columns, has_colour, plain
from prunecli.report import Change, LayerChange, MaskedLayer, Report, TrainingFacts
from prunecli.report.masks import is_cut, mask_lines, weights_of
from prunecli.report.models_text import latency_text, lineage_lines, memory_lines, models_table, units_of_all
from prunecli.report.numbers import human, human_bytes, percent
from prunecli.report.text import accuracy_text, macs_share, onnx_text, parity_text, recovery_text
from prunecli.report.training_text import figure_lines, phase_notes, phase_table, shows_layers, training_text

UNLIMITED = 100_000
"""Columns of a pipe."""
_SHORTEST_NAME = 16
"""What a name keeps even where it costs the table its fit."""
MOST_ROWS = 40
"""Rows of a table that a terminal gets, unless all are asked for."""
_GAP = "  "
_CUT_NUMBER = re.compile(r"\d\.{3}|\.{3}\d")
_SPARE = ("params", "best", "loss")
"""Columns of the table of phases that may go."""
_SPARE_OF_MODELS = ("loss", "top5", "params", "peak act.", "file size")
"""Columns of the table of files that may go."""


@dataclass(frozen=True)
class Column:
    """One column as text, and what may be done to it where the terminal is narrow."""

    title: str
    cells: tuple[str, ...]
    is_name: bool = False
    """Names stand on the left and may be folded; numbers stand on the right and may not."""
    is_list: bool = False
    """Lists of names lose their end, names their middle."""
    fold_to: int = 24
    """How narrow a name may become."""
    drop: int = 0
    """Columns with the highest number go first; 0 stays always."""

    @property
    def width(self) -> int:
        """Return the width of the widest cell."""
        return max(map(len, (self.title, *self.cells)))

    def padded(self) -> list[str]:
        """Return the title and the cells, all equally wide."""
        width = self.width  # which looks at every cell
        return [
            text.ljust(width) if self.is_name else text.rjust(width) for text in (self.title, *self.cells)
        ]


def stdout_console() -> Console:
    """Return what results are laid out for: as wide as COLUMNS says, else as the terminal, else without end.

    It writes nothing by itself (`streams.write_result` does): what it prints is captured.
    """
    is_terminal = sys.stdout.isatty()
    width = asked_columns() or (None if is_terminal else UNLIMITED)
    colour = has_colour(is_terminal)
    return Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        no_color=not colour,
        highlight=False,
        emoji=False,
    )


def most_rows(everything: bool = False) -> int | None:
    """Return how many rows of a table to show: a terminal gets the most telling ones, a pipe gets all."""
    return None if everything or not sys.stdout.isatty() else MOST_ROWS


def more_line(count: int, what: str, width: int) -> list[Text]:
    """Return a line that says how many rows are not shown; none if all are."""
    if count <= 0:
        return []
    return paragraph(
        f"and {count:,} more {what}{'s' * (count != 1)}; --all shows them", width, style="italic"
    )


def render_report(
    report: Report, console: Console, written: Mapping[Path, int] | None = None, most: int | None = None
) -> None:
    """Print a report.

    Args:
        report: What to print.
        console: Where to.
        written: Paths just written, and their sizes; by default the names that the report knows.
        most: Layers to show, those that changed most; by default all.
    """
    width = console.width
    lines = [Text(plain(report.title), "bold")]
    if report.settings:
        asked = ", ".join(
            f"{name} {_setting(value)}"
            for name, value in report.settings.items()
            if value not in (None, "", []) and name != "sample_digest"
        )
        lines += paragraph(asked, width, style="dim")
    if shows_layers(report):
        layers = layers_shown(report, most)
        hidden = len(_with_macs(report)) - len(layers)
        lines += [Text(), *table_lines(layer_columns(report, layers), width)]
        lines += more_line(hidden, "layer", width)
    if len(report.models) > 2:
        lines += [
            Text(),
            *table_lines(_plain_columns(models_table(report), _SPARE_OF_MODELS), width, has_total=False),
        ]
    if report.training and report.training.phases:
        lines += [Text(), *table_lines(phase_columns(report.training), width, has_total=False)]
    lines += [Text()]
    for label, text in _summary(report, written):
        lines += paragraph(text, width, (f"{label:<10}", "bold"))
    for notice in report.warnings:
        loud = notice.kind == "collapse"
        lines += paragraph(notice.text, width, ("warning: ", "bold red" if loud else "bold magenta"))
    print_lines(lines, console)


def table_lines(columns: Sequence[Column], width: int = UNLIMITED, has_total: bool = True) -> list[Text]:
    """Lay columns out, with a rule below the titles and, if the last row is a total, above that."""
    padded = [column.padded() for column in fit(columns, width)]
    rows = [_GAP.join(cells).rstrip() for cells in zip(*padded, strict=True)]
    rule = Text("-" * max(map(len, rows)), "dim")
    head, body = Text(rows[0], "bold"), [Text(row) for row in rows[1:]]
    if has_total and body:
        body[-1].stylize("bold")
        body.insert(-1, rule)
    return [head, rule, *body]


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """Drop the columns that no folding makes room for; then fold lists, then names, the least first."""
    fitted = list(columns)
    while _total_width(fitted, folded=True) > width and any(column.drop for column in fitted):
        fitted.remove(max(fitted, key=lambda column: column.drop))
    for column in sorted(fitted, key=lambda column: (not column.is_list, -column.drop)):
        excess = _total_width(fitted) - width
        if excess > 0 and column.is_name:
            room = max(
                column.width - excess, column.fold_to if column.drop or column.is_list else _SHORTEST_NAME
            )
            fitted[fitted.index(column)] = _folded(column, room)
    return fitted


def _folded(column: Column, width: int) -> Column:
    """Shorten names where most of them stay different from each other, and fewest numbers lose digits."""
    if column.is_list:
        return replace(column, cells=tuple(fold_list(cell, width) for cell in column.cells))
    ways = [tuple(fold(cell, width, tail) for cell in column.cells) for tail in (4, 3, 2, 1)]
    worths = [(len(set(cells)), -sum(map(bool, map(_CUT_NUMBER.search, cells)))) for cells in ways]
    return replace(column, cells=ways[worths.index(max(worths))])


def fold(name: str, width: int, sixths: int = 4) -> str:
    """Shorten a name inside, so that so many sixths of what is left are its end, which says most.

    >>> fold("encoder.layers.encoder_layer_0.mlp.0", 20)
    'encode...yer_0.mlp.0'
    """
    if len(name) <= width:
        return name
    tail = (width - 3) * sixths // 6
    return f"{name[: width - 3 - tail]}...{name[-tail:]}"


def fold_list(names: str, width: int) -> str:
    """Shorten a list of names at its end.

    >>> fold_list("conv1, bn1, conv2", 14)
    'conv1, bn1 ...'
    """
    if len(names) <= width:
        return names
    whole = names[: width - 3].rpartition(",")[0]  # up to the end of a name, where one fits
    return f"{whole or names[: width - 4]} ..."


def layers_shown(report: Report, most: int | None = None) -> list[LayerChange]:
    """Return the layers that have MACs, in their order: of more than `most`, those that changed most.

    Of layers that changed alike, those with more MACs left.
    """
    layers = _with_macs(report)
    if most is None or len(layers) <= most:
        return layers
    masked = weights_of(report)

    def change(layer: LayerChange) -> tuple[int, int]:
        gone = masked[layer.name].size - masked[layer.name].kept if layer.name in masked else 0
        return layer.macs.before - layer.macs.after + gone, layer.macs.after

    chosen = set(map(id, sorted(layers, key=change, reverse=True)[:most]))
    return [layer for layer in layers if id(layer) in chosen]


def _with_macs(report: Report) -> list[LayerChange]:
    return [layer for layer in report.layers if layer.macs.before or layer.macs.after]


def layer_columns(report: Report, layers: Sequence[LayerChange] | None = None) -> list[Column]:
    """Return the table of layers: units or weights kept, params, MACs, and its part of the MACs left.

    Args:
        report: What to show.
        layers: Those to name; by default all that have MACs. Others are summed up.
    """
    layers = _with_macs(report) if layers is None else layers
    shown = set(map(id, layers))
    others = [layer for layer in report.layers if id(layer) not in shown]
    totals = report.totals
    total = LayerChange("total", "", totals.units, totals.params, totals.macs)
    rows = [*layers, *([_sum_up(others)] if others else []), total]
    masked, chains = report.masks is not None, units_of_all(report)
    weights = _weight_columns(report, [layer.name for layer in layers], bool(others)) if masked else []
    units = Column(
        "units",
        tuple(
            chains.get(row.name) or (f"{row.units.after}/{row.units.before}" if row.units else "")
            for row in rows
        ),
    )
    return [
        Column("layer", tuple(plain(row.name) or "(root)" for row in rows), is_name=True),
        Column("type", tuple(plain(row.kind) for row in rows), is_name=True, fold_to=12, drop=3),
        *([units] if not masked or is_cut(report) else []),
        *weights,
        Column("params", _changes([row.params for row in rows]), drop=2 if masked else 0),
        Column("MACs", _changes([row.macs for row in rows])),
        Column("share", tuple(percent(macs_share(row, report)) for row in rows), drop=1),
    ]


def _weight_columns(report: Report, names: Sequence[str], has_others: bool) -> list[Column]:
    """Return how many weights are left of the layers named, of all others where there are any, and in all."""
    masked = weights_of(report)
    rows = [masked.get(name) for name in names]
    rest = [layer for name, layer in masked.items() if name not in set(names)]
    rows += [_all_of(rest) if rest else None] if has_others else []
    rows.append(_all_of(masked.values()))
    return [
        Column("weights", tuple(f"{row.kept}/{row.size}" if row else "" for row in rows)),
        Column("left", tuple(percent(row.share) if row else "" for row in rows)),
    ]


def _all_of(layers: Iterable[MaskedLayer]) -> MaskedLayer:
    """Return the sums."""
    known = list(layers)
    return MaskedLayer("", sum(one.kept for one in known), sum(one.size for one in known))


def phase_columns(facts: TrainingFacts) -> list[Column]:
    """Return the table of phases: what was left, and how good it was at the end of each."""
    return _plain_columns(phase_table(facts), _SPARE)


def _plain_columns(table: Sequence[Sequence[str]], spare: Sequence[str]) -> list[Column]:
    """Return columns of texts, of which the first are names; `spare` ones go first where there is no room."""
    titles, *rows = table
    return [
        Column(
            title,
            tuple(plain(row[i]) for row in rows),
            is_name=i == 0,
            drop=len(spare) - spare.index(title) if title in spare else 0,
        )
        for i, title in enumerate(titles)
    ]


def _sum_up(layers: Sequence[LayerChange]) -> LayerChange:
    zero = Change(0, 0)
    params = sum((layer.params for layer in layers), zero)
    macs = sum((layer.macs for layer in layers), zero)
    name = f"({len(layers)} others)" if macs.before or macs.after else f"({len(layers)} without MACs)"
    return LayerChange(name, "", None, params, macs)


def _changes(changes: Sequence[Change]) -> tuple[str, ...]:
    """Write changes so that the arrows stand below each other."""
    before, after = [human(change.before) for change in changes], [human(change.after) for change in changes]
    widths = max(map(len, before)), max(map(len, after))
    return tuple(f"{b:>{widths[0]}} -> {a:>{widths[1]}}" for b, a in zip(before, after, strict=True))


def _setting(value: object) -> str:
    """Write one setting.

    >>> _setting({"temperature": 4.0, "draws": 2}), _setting(0.0320179931)
    ('temperature=4 draws=2', '0.03202')
    """
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_setting(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _summary(report: Report, written: Mapping[Path, int] | None) -> Iterator[tuple[str, str]]:
    totals = report.totals
    yield from mask_lines(report)
    for label, change, write in (
        ("params", totals.params, human),
        ("MACs", totals.macs, human),
        ("size", totals.parameter_bytes, human_bytes),
    ):
        yield label, f"{write(change.before)} -> {write(change.after)} ({percent(change.ratio)} left)"
    yield from memory_lines(report)
    if latency := latency_text(report):
        yield "latency", latency
    yield from (("" if i else "lineage", line) for i, line in enumerate(lineage_lines(report)))
    if accuracy := accuracy_text(report.accuracy_before, report.accuracy_after):
        yield "accuracy", accuracy
    if report.training:
        yield "training", training_text(report.training)
        yield from (("", f"{name}: {value}") for name, value in figure_lines(report.training))
        yield from (("", note) for note in phase_notes(report.training))
    if report.recovery:
        yield "recovery", recovery_text(report.recovery)
        yield from (("", note) for note in report.recovery.notes)
    if report.parity:
        yield "parity", "; ".join(map(parity_text, report.parity))
    if report.onnx:
        yield "onnx", onnx_text(report.onnx)
        yield from (("", note) for note in report.onnx.notes)
    files = {Path(file.name): file.size for file in report.files} if written is None else written
    for i, (path, size) in enumerate(files.items()):
        yield "" if i else "written", f"{path} ({human_bytes(size)})"


def _total_width(columns: Sequence[Column], folded: bool = False) -> int:
    widths = (min(c.width, c.fold_to) if folded and c.is_name else c.width for c in columns)
    return sum(widths) + len(_GAP) * (len(columns) - 1)
