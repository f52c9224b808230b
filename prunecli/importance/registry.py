"""The table of methods: what each is called, what it needs, where it comes from.

A method is one class in one file:

    @method("magnitude-l1", needs=Needs.PARAMETERS, source="Li et al., 2017")
    class MagnitudeL1:
        ...

Its docstring's first line is the summary that `prunecli methods` prints. If it takes arguments, it is
a frozen dataclass too, and its fields are what `--method-arg NAME=VALUE` may set.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum, Flag, auto
from typing import Any, Protocol, TypeVar, get_type_hints

from prunecli.errors import UsageError
from prunecli.graph.structure import Group, Member
from prunecli.importance.context import Observed, State, UnitValues


class Needs(Flag):
    """What a method looks at. Nothing but `PARAMETERS` means that no sample is read."""

    PARAMETERS = auto()
    LABELS = auto()
    GRADIENTS = auto()

    @property
    def names(self) -> tuple[str, ...]:
        """The needs in words, for tables."""
        return tuple(str(need.name).lower() for need in Needs if need in self)


class Granularity(str, Enum):
    """What gets a score."""

    UNIT = "unit"
    WEIGHT = "weight"


class Method(Protocol):
    """A way to score. Higher = keep, always."""

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return the members that the score of `group` is made of."""
        ...

    def refuse(self, group: Group) -> str | None:
        """Return why `group` cannot be scored, in words that follow its name; None if it can."""
        ...

    def observe(self, batch: Observed) -> State:
        """Return what one micro-batch contributes."""
        ...

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the scores from the merged state of `batches` micro-batches."""
        ...


@dataclass(frozen=True)
class MethodInfo:
    """One row of the table."""

    name: str
    needs: Needs
    source: str
    passes: int
    """How often it runs forward and backward over the sample."""
    granularity: Granularity
    make: Callable[..., Method]

    @property
    def summary(self) -> str:
        """What it scores, in one line."""
        return (inspect.getdoc(self.make) or "").partition("\n")[0]

    @property
    def needs_data(self) -> bool:
        """Whether it reads the sample."""
        return bool(self.needs & (Needs.LABELS | Needs.GRADIENTS))

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Its arguments and their defaults."""
        if not dataclasses.is_dataclass(self.make):
            return {}
        return {field.name: field.default for field in dataclasses.fields(self.make)}


_TABLE: dict[str, MethodInfo] = {}
_MethodClass = TypeVar("_MethodClass", bound=type)


def method(
    name: str,
    *,
    needs: Needs,
    source: str,
    passes: int = 0,
    granularity: Granularity = Granularity.UNIT,
) -> Callable[[_MethodClass], _MethodClass]:
    """Enter the class below into the table of methods."""

    def enter(make: _MethodClass) -> _MethodClass:
        if name in _TABLE:
            raise ValueError(f"Two methods are called `{name}`: {_TABLE[name].make} and {make}.")
        _TABLE[name] = MethodInfo(name, needs, source, passes, granularity, make)
        return make

    return enter


def methods() -> tuple[MethodInfo, ...]:
    """Return all methods, by name."""
    return tuple(_TABLE[name] for name in sorted(_TABLE))


def find_method(name: str) -> MethodInfo:
    """Return the method called `name`.

    Raises:
        UsageError: There is none; the message names the nearest.
    """
    if name in _TABLE:
        return _TABLE[name]
    raise UsageError(
        f"There is no method `{name}`.{nearest(name, _TABLE)} `prunecli methods` lists them all."
    )


def build_methods(names: Iterable[str], arguments: Mapping[str, object]) -> dict[str, Method]:
    """Make the methods called `names`; each takes those of the `arguments` that it declares.

    Raises:
        UsageError: A name or an argument is unknown, or a value does not fit.
    """
    infos = [find_method(name) for name in names]
    declared = {argument: info.name for info in infos for argument in info.arguments}
    for argument in arguments:
        if argument not in declared:
            raise UsageError(
                f"No argument `{argument}` in {', '.join(f'`{info.name}`' for info in infos)}."
                f"{nearest(argument, declared) or ' They take none.' * (not declared)}"
            )
    return {info.name: info.make(**parse_arguments(info, arguments)) for info in infos}


def parse_arguments(info: MethodInfo, arguments: Mapping[str, object]) -> dict[str, Any]:
    """Return those of the `arguments` that the method declares, text turned into the declared types."""
    hints = get_type_hints(info.make) if info.arguments else {}
    return {
        name: _parsed(f"`{name}` of `{info.name}`", value, hints[name]) if isinstance(value, str) else value
        for name, value in arguments.items()
        if name in info.arguments
    }


def _parsed(what: str, text: str, kind: type) -> object:
    """Return `text` as a `kind`: bool, int, float, str or an enum."""
    words = {"true": True, "false": False}
    try:
        if kind is bool:
            return words[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        if kind is bool:
            expected = "true or false"
        elif issubclass(kind, Enum):
            expected = "one of " + ", ".join(str(choice.value) for choice in kind)
        else:
            expected = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise UsageError(f"{what} is {expected}, not `{text}`.") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean ...?` for the nearest known name, or nothing.

    >>> nearest("tailor-fo", ["taylor-fo", "random"])
    ' Did you mean `taylor-fo`?'
    """
    found = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean `{found[0]}`?" if found else ""
