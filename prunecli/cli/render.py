"""Report -> text for a terminal or a pipe. The one file that knows colours, human units and column widths.

On a terminal the table is made to fit: long types and names are folded in the middle, then the columns go
that matter least; a number is never cut. In a pipe nothing is folded or dropped, unless COLUMNS asks for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from prunecli.cli.streams import has_colour, plain
from prunecli.report import Change, LayerChange, Report
from prunecli.report.text import (
    accuracy_text,
    human,
    human_bytes,
    macs_share,
    onnx_text,
    parity_text,
    percent,
)

UNLIMITED = 100_000
"""Columns of a pipe."""
_SHORTEST_NAME = 16
"""What a name keeps even where it costs the table its fit."""
_GAP = "  "


@dataclass(frozen=True)
class Column:
    """One column as text, and what may be done to it where the terminal is narrow."""

    title: str
    cells: tuple[str, ...]
    is_name: bool = False
    """Names stand on the left and may be folded; numbers stand on the right and may not."""
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
        return [
            text.ljust(self.width) if self.is_name else text.rjust(self.width)
            for text in (self.title, *self.cells)
        ]


def stdout_console() -> Console:
    """Return where results go."""
    return _console(sys.stdout.isatty(), stderr=False)


def stderr_console() -> Console:
    """Return where all else goes."""
    return _console(sys.stderr.isatty(), stderr=True)


def render_report(
    report: Report, console: Console, folder: Path | None = None, every_layer: bool = False
) -> None:
    """Print a report.

    Args:
        report: What to print.
        console: Where to.
        folder: Where the files written lie.
        every_layer: Show layers without arithmetic (norms) one by one, not in one line.
    """
    lines = [Text(plain(report.title), "bold")]
    if report.settings:
        asked = ", ".join(
            f"{name} {value}" for name, value in report.settings.items() if value not in (None, "", [])
        )
        lines.append(Text(plain(asked), "dim"))
    lines += [Text(), *table_lines(layer_columns(report, every_layer), console.width), Text()]
    lines += [
        Text.assemble((f"{label:<10}", "bold"), plain(text)) for label, text in _summary(report, folder)
    ]
    lines += [Text.assemble(("warning: ", "yellow"), plain(notice.text)) for notice in report.warnings]
    print_lines(lines, console)


def print_lines(lines: Iterable[Text], console: Console) -> None:
    """Print lines as they are: nothing is wrapped or cut."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


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
    """Drop the columns that no folding makes room for, then fold names, the least important ones first."""
    fitted = list(columns)
    while _total_width(fitted, folded=True) > width and any(column.drop for column in fitted):
        fitted.remove(max(fitted, key=lambda column: column.drop))
    for column in sorted(fitted, key=lambda column: -column.drop):
        excess = _total_width(fitted) - width
        if excess > 0 and column.is_name:
            room = max(column.width - excess, column.fold_to if column.drop else _SHORTEST_NAME)
            fitted[fitted.index(column)] = _folded(column, room)
    return fitted


def _folded(column: Column, width: int) -> Column:
    return replace(column, cells=tuple(fold(cell, width) for cell in column.cells))


def fold(name: str, width: int) -> str:
    """Shorten a name before its middle, where it says least.

    >>> fold("encoder.layers.encoder_layer_0.mlp.0", 20)
    'encode...yer_0.mlp.0'
    """
    if len(name) <= width:
        return name
    tail = (width - 3) * 2 // 3
    return f"{name[: width - 3 - tail]}...{name[-tail:]}"


def layer_columns(report: Report, every_layer: bool = False) -> list[Column]:
    """Return the table of layers: units kept, parameters, MACs, and each layer's part of the MACs left."""
    layers = [layer for layer in report.layers if every_layer or layer.macs.before or layer.macs.after]
    shown = set(map(id, layers))
    others = [layer for layer in report.layers if id(layer) not in shown]
    rows = [*layers, *([_sum_up(others)] if others else [])]
    totals = report.totals
    total = LayerChange("total", "", totals.units, totals.params, totals.macs)
    return [
        Column("layer", tuple(plain(row.name) or "(root)" for row in [*rows, total]), is_name=True),
        Column("type", tuple(plain(row.kind) for row in [*rows, total]), is_name=True, fold_to=12, drop=2),
        Column(
            "units",
            tuple(f"{row.units.after}/{row.units.before}" if row.units else "" for row in [*rows, total]),
        ),
        Column("params", _changes([row.params for row in [*rows, total]])),
        Column("MACs", _changes([row.macs for row in [*rows, total]])),
        Column("share", tuple(percent(macs_share(row, report)) for row in [*rows, total]), drop=1),
    ]


def _sum_up(layers: Sequence[LayerChange]) -> LayerChange:
    zero = Change(0, 0)
    params = sum((layer.params for layer in layers), zero)
    return LayerChange(f"({len(layers)} without MACs)", "", None, params, zero)


def _changes(changes: Sequence[Change]) -> tuple[str, ...]:
    """Write changes so that the arrows stand below each other."""
    before, after = [human(change.before) for change in changes], [human(change.after) for change in changes]
    widths = max(map(len, before)), max(map(len, after))
    return tuple(f"{b:>{widths[0]}} -> {a:>{widths[1]}}" for b, a in zip(before, after, strict=True))


def _summary(report: Report, folder: Path | None) -> Iterator[tuple[str, str]]:
    totals = report.totals
    for label, change, write in (
        ("params", totals.params, human),
        ("MACs", totals.macs, human),
        ("size", totals.parameter_bytes, human_bytes),
    ):
        yield label, f"{write(change.before)} -> {write(change.after)} ({percent(change.ratio)} left)"
    if accuracy := accuracy_text(report.accuracy_before, report.accuracy_after):
        yield "accuracy", accuracy
    if report.parity:
        yield "parity", "; ".join(map(parity_text, report.parity))
    if report.onnx:
        yield "onnx", onnx_text(report.onnx)
        yield from (("", note) for note in report.onnx.notes)
    for i, file in enumerate(report.files):
        path = folder / file.name if folder else Path(file.name)
        yield "" if i else "written", f"{path} ({human_bytes(file.size)})"


def _total_width(columns: Sequence[Column], folded: bool = False) -> int:
    widths = (min(c.width, c.fold_to) if folded and c.is_name else c.width for c in columns)
    return sum(widths) + len(_GAP) * (len(columns) - 1)


def _console(is_terminal: bool, stderr: bool) -> Console:
    """Make a console that is as wide as COLUMNS says, else as the terminal, else without end."""
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdigit() and int(columns) else None if is_terminal else UNLIMITED
    colour = has_colour(is_terminal)
    return Console(
        stderr=stderr, width=width, force_terminal=colour, no_color=not colour, highlight=False, emoji=False
    )
