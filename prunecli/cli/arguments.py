"""Arguments of methods and schedules -> words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunecli.arguments import Argument


def with_defaults(arguments: Iterable[Argument]) -> tuple[str, ...]:
    """Return `NAME=DEFAULT` for each."""
    return tuple(f"{argument.name}={argument.default_text}" for argument in arguments)


def explained(arguments: Iterable[Argument]) -> Iterator[str]:
    """Yield, for each, an empty line, what it is and its default, and what it means."""
    for argument in arguments:
        yield ""
        yield f"argument  {argument.name}: {argument.expects}, by default {argument.default_text}"
        yield f"{'':<10}{argument.meaning}"


def another_value(argument: Argument) -> str:
    """Return a value that is not the default, where the values can be listed."""
    others = (choice for choice in argument.choices if choice != argument.default_text)
    return next(others, argument.default_text)


def as_plain(arguments: Iterable[Argument]) -> list[dict[str, str]]:
    """Return them as JSON holds them."""
    return [
        {
            "name": argument.name,
            "default": argument.default_text,
            "expects": argument.expects,
            "meaning": argument.meaning,
        }
        for argument in arguments
    ]
