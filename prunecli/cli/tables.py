"""Tables as data -> text for a terminal, for Markdown, for a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rich.text import Text

from prunecli.cli.options import Shown
from prunecli.cli.render import Column, paragraph, print_lines, render_report, stdout_console, table_lines
from prunecli.cli.streams import plain, say, write_result
from prunecli.report import Report, text

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


def to_terminal(tables: Sequence[Table], heading: str = "", closing: Sequence[str] = ()) -> str:
    """Return aligned text: as wide as the terminal, or as COLUMNS says; never cut in a pipe."""
    console = stdout_console()
    width = console.width
    lines = paragraph(heading, width, style="bold") if heading else []
    for table in tables:
        if table.rows:
            title = [Text(plain(table.title), "bold")] if table.title else []
            separator = [Text()] if lines else []
            lines += [*separator, *title, *table_lines(_columns(table), width, has_total=False)]
    lines += [Text()] if lines and closing else []
    for line in (line for block in closing for line in block.splitlines() or [""]):
        lead = _LEAD.match(line)
        lines += paragraph(line[lead.end() :] if lead else line, width, (lead[0] if lead else "", ""))
    with console.capture() as captured:
        print_lines(lines, console)
    return captured.get()


def to_markdown(tables: Sequence[Table], heading: str = "", closing: Sequence[str] = ()) -> str:
    """Return headings, pipe tables and paragraphs."""
    parts = [heading] if heading else []
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
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in table.rows)
    return buffer.getvalue()


def report_text(report: Report, style: str, written: Mapping[Path, int] | None = None) -> str:
    """Return a report in the form asked for; a table also says which paths were written."""
    match style:
        case "json":
            return report.to_json()
        case "csv":
            return text.to_csv(report)
        case "md":
            return text.to_markdown(report)
        case "table":
            pass
    console = stdout_console()
    with console.capture() as captured:
        render_report(report, console, written)
    return captured.get()


def show_report(report: Report, files: Sequence[Path], asked: Shown) -> None:
    """Write a report to standard output; only the path of the first file, if that is all to be said."""
    if asked.quiet:
        for path in files[:1]:  # a dry run may write nothing
            write_result(str(path))
        return
    sizes = {path: path.stat().st_size for path in files}
    write_result(report_text(report, asked.style, sizes))
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
