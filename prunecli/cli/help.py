"""A command -> its help, laid out so that no name is ever cut; and the classes that show it.

Names are bold and headings magenta: both can be read on dark and on light terminals.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

from prunecli.cli.described import Parameter, examples, one_line, sections, usage
from prunecli.cli.streams import asked_columns, has_colour

if TYPE_CHECKING:
    from rich.text import Text

MOST_COLUMNS = 100
"""Lines that are longer are hard to read."""
USUAL_COLUMNS = 80
"""Of a pipe."""
_LEAST_COLUMNS = 40
_NAMES = 26
"""Columns of the names and their values; what is wider has a line of its own."""


class HelpedCommand(TyperCommand):
    """A command that shows its help as this file lays it out."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        ctx.color = has_colour(sys.stdout.isatty())
        formatter.write(written(help_lines(self, ctx, columns()), ctx.color))


class HelpedGroup(TyperGroup):
    """All commands together: their help names each, and what it is for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        ctx.color = has_colour(sys.stdout.isatty())
        formatter.write(written(group_lines(self, ctx, columns()), ctx.color))


def columns() -> int:
    """Return how wide help is: as COLUMNS says, else as the terminal, up to what reads well."""
    usual = USUAL_COLUMNS
    if sys.stdout.isatty():
        usual = shutil.get_terminal_size((USUAL_COLUMNS, 24)).columns
    found = asked_columns() or usual
    return max(min(found, MOST_COLUMNS), _LEAST_COLUMNS)


def help_lines(command: Any, context: Any, width: int) -> Iterator[Text]:
    """Yield usage, purpose, examples, and every parameter under its heading."""
    yield from _usage(command, context, usage(command), width)
    yield from _example_lines(examples(command), width)
    for section in sections(command, context):
        yield from _heading(section.title)
        for parameter in section.parameters:
            yield from _entry(parameter.written, _said(parameter), width, _NAMES)


def group_lines(group: Any, context: Any, width: int) -> Iterator[Text]:
    """Yield usage, purpose, every command, and the options that stand before a command."""
    yield from _usage(group, context, "COMMAND [OPTIONS] ...", width)
    names = group.list_commands(context)
    yield from _heading("Commands")
    for name in names:
        purpose = one_line(group.get_command(context, name).help or "")
        yield from _entry(name, purpose, width, max(map(len, names)) + 4)
    for section in sections(group, context):
        yield from _heading(section.title)
        for parameter in section.parameters:
            yield from _entry(parameter.written, _said(parameter), width, _NAMES)
    if group.epilog:
        from prunecli.cli.lines import paragraph

        yield from ([*paragraph("", width), *paragraph(group.epilog, width)])


def written(lines: Iterator[Text], in_colour: bool) -> str:
    """Return lines as text, with escape codes if in colour."""
    from rich.console import Console

    console = Console(
        width=10 * MOST_COLUMNS,
        force_terminal=in_colour,
        no_color=not in_colour,
        color_system="standard" if in_colour else None,
        highlight=False,
        emoji=False,
    )
    with console.capture() as captured:
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)
    return captured.get()


def _usage(command: Any, context: Any, pieces: str, width: int) -> Iterator[Text]:
    from rich.text import Text

    from prunecli.cli.lines import paragraph

    yield from paragraph(f"{context.command_path} {pieces}", width, ("Usage: ", "bold"))
    yield Text()
    yield from paragraph(one_line(command.help or ""), width)


def _heading(title: str) -> Iterator[Text]:
    from rich.text import Text

    yield Text()
    yield Text(title, "bold magenta")


def _example_lines(lines: list[str], width: int) -> Iterator[Text]:
    """Yield examples that can be pasted: one that is too long goes on after a backslash."""
    from prunecli.cli.lines import paragraph

    if not lines:
        return
    yield from _heading("Examples")
    for line in lines:
        *first, last = paragraph(line, width - 2, ("  ", ""))
        for i, part in enumerate([*first, last]):
            part.pad_left(2 if i else 0)
            yield part.append(" \\") if i < len(first) else part


def _entry(name: str, text: str, width: int, room: int) -> Iterator[Text]:
    """Yield a name, and right of it what it is; below it, where the name is wide."""
    from rich.text import Text

    from prunecli.cli.lines import paragraph

    lines = paragraph(text, width, (" " * room, "")) if text else []
    lead = Text.assemble((f"  {name}", "bold"))
    if lines and len(lead) + 2 <= room:
        yield lead + lines[0][len(lead) :]
        yield from lines[1:]
    else:
        yield lead
        yield from lines


def _said(parameter: Parameter) -> str:
    """Return the text of a parameter, with its default."""
    default = f" Default: {parameter.default}." if parameter.default else ""
    return f"{parameter.text}{default}"
