"""Tables as data -> text for a terminal, for Markdown, for a spreadsheet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from rich.text import Text

from prunecli.cli.lines import paragraph, print_lines
from prunecli.cli.options import Shown
from prunecli.cli.render import (
    Column,
    more_line,
    most_rows,
    render_report,
    stdout_console,
    table_lines,
)
from prunecli.cli.streams import plain, say, write_result
from prunecli.report import Report
from prunecli.report.forms import FORMS
from prunecli.report.spreadsheet import csv_text

Cell: TypeAlias = "str | int | float | None"

_LEAD = re.compile(r"\S* {2,}")
"""What stands in a column of its own before a line of text."""


@dataclass(frozen=True)
class Table:
    """A heading, the names of the columns, and rows of plain values."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    optional: tuple[str, ...] = ()
    """Columns that go first where the terminal is narrow, the last one before the others."""
    lists: tuple[str, ...] = ()
    """Columns of lists, which lose their end where the terminal is narrow."""
    numeric: tuple[str, ...] = ()
    """Columns of numbers that are text already."""
    chosen_by: str = ""
    """The column whose largest numbers are shown of a long table; by default, the first rows are."""


def to_terminal(
    tables: Sequence[Table], heading: str = "", closing: Sequence[str] = (), everything: bool = False
) -> str:
    """Return aligned text: as wide as the terminal, or as COLUMNS says; never cut in a pipe.

    Args:
        tables: Those with no rows are left out.
        heading: What stands above them.
        closing: Paragraphs below them.
        everything: Whether a terminal gets long tables whole, too.
    """
    console = stdout_console()
    most = most_rows(everything)
    width = console.width
    lines = paragraph(heading, width, style="bold") if heading else []
    for table in tables:
        if table.rows:
            title = [Text(plain(table.title), "bold")] if table.title else []
            separator = [Text()] if lines else []
            shown_rows = shortened(table, most)
            lines += [*separator, *title, *table_lines(_columns(shown_rows), width, has_total=False)]
            lines += more_line(len(table.rows) - len(shown_rows.rows), "row", width)
    lines += [Text()] if lines and closing else []
    for line in (line for block in closing for line in block.splitlines() or [""]):
        lead = _LEAD.match(line)
        lines += paragraph(line[lead.end() :] if lead else line, width, (lead[0] if lead else "", ""))
    with console.capture() as captured:
        print_lines(lines, console)
    return captured.get()


def shortened(table: Table, most: int | None) -> Table:
    """Return a table with so many rows at most: those with the largest numbers in what it is chosen by."""
    if most is None or len(table.rows) <= most:
        return table
    chosen = list(range(most))
    if table.chosen_by:
        at = table.columns.index(table.chosen_by)
        largest = sorted(range(len(table.rows)), key=lambda i: _size(table.rows[i][at]), reverse=True)
        chosen = sorted(largest[:most])
    return replace(table, rows=tuple(table.rows[i] for i in chosen))


def _size(cell: Cell) -> float:
    return abs(cell) if isinstance(cell, (int, float)) else 0.0


def to_markdown(tables: Sequence[Table], heading: str = "", closing: Sequence[str] = ()) -> str:
    """Return headings, pipe tables and paragraphs."""
    parts = [_escaped(heading)] if heading else []
    for table in tables:
        if table.rows:
            rule = ["---:" if _is_numeric(table, i) else "---" for i in range(len(table.columns))]
            rows = [[_escaped(shown(cell)) for cell in row] for row in table.rows]
            title = f"### {table.title}\n\n" if table.title else ""
            parts.append(
                title + "\n".join(f"| {' | '.join(line)} |" for line in (table.columns, rule, *rows))
            )
    return "\n\n".join((*parts, *map(_escaped, closing))) + "\n"


def to_csv(table: Table) -> str:
    """Return one table as comma-separated values, numbers in full."""
    return csv_text((table.columns, *table.rows))


def report_text(
    report: Report, style: str, written: Mapping[Path, int] | None = None, everything: bool = False
) -> str:
    """Return a report in the form asked for; a table also says which paths were written."""
    if style != "table":
        return FORMS[style](report, ())
    console = stdout_console()
    with console.capture() as captured:
        render_report(report, console, written, most_rows(everything))
    return captured.get()


def show_report(report: Report, files: Sequence[Path], asked: Shown) -> None:
    """Write a report to standard output; only the path of the first file, if that is all to be said."""
    if asked.quiet:
        for path in files[:1]:  # a dry run may write nothing
            write_result(str(path))
        return
    sizes = {path: path.stat().st_size for path in files}
    write_result(report_text(report, asked.style, sizes, asked.all))
    if asked.style != "table":  # which names the paths itself
        for path in files:
            say(f"wrote {path}")


def shown(cell: Cell) -> str:
    """Write a value for people.

    >>> shown(1234567), shown(0.000123456), shown(None)
    ('1,234,567', '0.0001235', '-')
    """
    if cell is None:
        return "-"
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4g}" if isinstance(cell, float) else cell


def _columns(table: Table) -> list[Column]:
    return [
        Column(
            name,
            tuple(plain(shown(row[i])) for row in table.rows),
            is_name=not _is_numeric(table, i),
            is_list=name in table.lists,
            drop=1 + table.optional.index(name) if name in table.optional else 0,
        )
        for i, name in enumerate(table.columns)
    ]


def _is_numeric(table: Table, column: int) -> bool:
    is_said = table.columns[column] in table.numeric
    return is_said or any(isinstance(row[column], (int, float)) for row in table.rows)


def _escaped(text: str) -> str:
    return plain(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
