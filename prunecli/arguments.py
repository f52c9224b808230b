"""Fields of a dataclass as arguments that a user may set by `NAME=VALUE`. No torch.

    share: Annotated[float, "Share of the entries that count."] = 0.5

Methods (`--method-arg`) and schedules (`--schedule-arg`) declare theirs so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

from prunecli.errors import UsageError


@dataclass(frozen=True)
class Argument:
    """A field that the user may set."""

    name: str
    default: Any
    kind: type
    """bool, int, float, str or an enum."""
    meaning: str
    """One line; empty where the method does not say."""

    @property
    def default_text(self) -> str:
        """The default, as it is written after `NAME=`."""
        return _written(self.default)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values there are, as they are written; empty where they cannot be listed."""
        if self.kind is bool:
            return ("true", "false")
        return tuple(_written(choice) for choice in self.kind) if issubclass(self.kind, Enum) else ()

    @property
    def expects(self) -> str:
        """What it may be, in words."""
        return " or ".join(self.choices) or _KINDS.get(self.kind, self.kind.__name__)


_KINDS: Mapping[type, str] = {int: "a whole number", float: "a number", str: "a text"}


def _written(value: object) -> str:
    plain = value.value if isinstance(value, Enum) else value
    return str(plain).lower() if isinstance(plain, bool) else str(plain)


def arguments_in(make: Callable[..., Any]) -> Mapping[str, Argument]:
    """Return the arguments that a class declares, by name; none if it is no dataclass."""
    if not dataclasses.is_dataclass(make):
        return {}
    hints = get_type_hints(make, include_extras=True)
    return {
        field.name: _argument(field.name, field.default, hints[field.name])
        for field in dataclasses.fields(make)
        if field.init
    }


def arguments_of(instance: object) -> dict[str, Any]:
    """Return what the arguments of an instance are set to, as values that JSON can hold."""
    set_to = {name: getattr(instance, name) for name in arguments_in(type(instance))}
    return {name: value.value if isinstance(value, Enum) else value for name, value in set_to.items()}


def parse_arguments(
    owner: str, declared: Mapping[str, Argument], given: Mapping[str, object]
) -> dict[str, Any]:
    """Return those of the values given that are declared, text turned into the declared types.

    Raises:
        UsageError: a value does not fit.
    """
    return {
        name: _parsed(owner, declared[name], value) if isinstance(value, str) else value
        for name, value in given.items()
        if name in declared
    }


def _argument(name: str, default: Any, hint: Any) -> Argument:
    kind, meaning = get_args(hint) if hasattr(hint, "__metadata__") else (hint, "")
    return Argument(name, default, kind, meaning)


def _parsed(owner: str, argument: Argument, text: str) -> object:
    """Return `text` as what the argument is."""
    try:
        if argument.kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return argument.kind(text)
    except (KeyError, ValueError):
        raise UsageError(f"`{argument.name}` of `{owner}` is {argument.expects}, not `{text}`.") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean ...?` for the nearest known name, or nothing.

    >>> nearest("tailor-fo", ["taylor-fo", "random"])
    ' Did you mean `taylor-fo`?'
    >>> nearest("taylor", ["taylor-fo", "taylor-so"])  # the first of those that are as near
    ' Did you mean `taylor-fo`?'
    """
    close = get_close_matches(name, [each for each in known if each != name], n=4, cutoff=0.5)
    found = sorted(close, key=lambda each: (-SequenceMatcher(None, each, name).ratio(), each))
    return f" Did you mean `{found[0]}`?" if found else ""


def nearest_file(path: Path) -> str:
    """Return ` Did you mean ...?` for the file beside a path that is called most like it, or nothing.

    That may be one whose ending was left out.
    """
    try:
        beside = sorted(path.parent.iterdir())
    except OSError:
        return ""
    alike = [each.name for each in beside if each.suffix == path.suffix]
    found = get_close_matches(path.name, alike, n=1, cutoff=0.7)
    found += [each.name for each in beside if each.stem == path.name]
    return f" Did you mean `{path.with_name(found[0])}`?" if found else ""
