"""`prunecli schedules`: what may happen to a model while it trains."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from prunecli.cli.arguments import as_plain, explained, with_defaults
from prunecli.cli.completion import schedule_names
from prunecli.cli.options import Style, with_options
from prunecli.cli.streams import write_result

if TYPE_CHECKING:
    from prunecli.training import ScheduleInfo

NAME = "schedules"
EXAMPLES = """Examples:
  prunecli schedules
  prunecli schedules contribution"""

ScheduleName = Annotated[
    str | None,
    typer.Argument(
        help="Say everything about one schedule.",
        metavar="[NAME]",
        show_default=False,
        autocompletion=schedule_names,
    ),
]


@with_options
def command(style: Style, name: ScheduleName = None) -> None:
    """List the schedules of `prunecli train`: what each does to a model, and where it comes from."""
    from prunecli.pipeline.schedules import all_schedules, one_schedule

    if name is None:
        write_result(render(all_schedules(), style))
    else:
        write_result(render_one(one_schedule(name), style))


def render(schedules: tuple[ScheduleInfo, ...], style: Style) -> str:
    """Return the list in the form asked for."""
    from prunecli.cli.tables import Table, to_csv, to_markdown, to_terminal

    rows = tuple(
        (each.name, ", ".join(with_defaults(each.arguments.values())), each.summary, each.source)
        for each in schedules
    )
    table = Table("Schedules", ("schedule", "arguments", "summary", "source"), rows)
    match style.style:
        case "json":
            return json.dumps({"version": 1, "schedules": [_plain(each) for each in schedules]}, indent=2)
        case "csv":
            return to_csv(table)
        case "md":
            return to_markdown([table])
        case "table":
            return to_terminal((), closing=[line for each in schedules for line in _in_words(each)])


def render_one(schedule: ScheduleInfo, style: Style) -> str:
    """Return everything about one schedule."""
    from prunecli.cli.tables import to_terminal

    if style.style != "table":
        return render((schedule,), style)
    lines = (
        *(line for paragraph in schedule.paragraphs for line in (paragraph, "")),
        f"source    {schedule.source}",
        *explained(schedule.arguments.values()),
        "",
        f"example   {example(schedule)}",
    )
    return to_terminal((), schedule.name, lines)


def example(schedule: ScheduleInfo) -> str:
    """Return a command that uses the schedule, and its first argument if it takes any."""
    argument = next(iter(schedule.arguments.values()), None)
    setting = f" --schedule-arg {argument.name}={argument.default_text}" if argument else ""
    return f"prunecli train --spec net.toml --schedule {schedule.name}{setting}"


def _in_words(schedule: ScheduleInfo) -> tuple[str, str]:
    facts = (*with_defaults(schedule.arguments.values()), schedule.source)
    return f"{schedule.name:<20}{schedule.summary}", f"{'':<20}{'; '.join(facts)}"


def _plain(schedule: ScheduleInfo) -> dict[str, object]:
    return {
        "name": schedule.name,
        "summary": schedule.summary,
        "prunes": schedule.prunes,
        "arguments": as_plain(schedule.arguments.values()),
        "source": schedule.source,
    }
