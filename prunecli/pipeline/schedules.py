"""The story of `schedules`: the table of schedules, whole or one row."""

from prunecli.training import ScheduleInfo, find_schedule, schedules


def all_schedules() -> tuple[ScheduleInfo, ...]:
    """Return all schedules, by name."""
    return schedules()


def one_schedule(name: str) -> ScheduleInfo:
    """Return the schedule called `name`.

    Raises:
        UsageError: there is none.
    """
    return find_schedule(name)
