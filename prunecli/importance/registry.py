"""The table of methods: what each is called, what it needs, where it comes from.

A method is one class in one file:

    @method("magnitude-l1", needs=Needs.PARAMETERS, source="Li et al., 2017")
    class MagnitudeL1:
        ...

Its docstring's first line is the summary that `prunecli methods` prints; one of its paragraphs starts
with the formula, `score = `. If it takes arguments, it is a frozen dataclass too, and its fields are
what `--method-arg NAME=VALUE` may set, each with what it means:

    share: Annotated[float, "Share of the entries that count."] = 0.5
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum, Flag, auto
from typing import Any, Protocol, TypeVar, get_args, get_type_hints, runtime_checkable

from prunecli.errors import UsageError
from prunecli.graph.structure import Group, Member
from prunecli.importance.context import Observed, State, UnitValues


class Needs(Flag):
    """What a method looks at. Nothing but `PARAMETERS` means that no sample is read."""

    PARAMETERS = auto()
    LABELS = auto()
    GRADIENTS = auto()  # of parameters
    GATES = auto()  # gradients of gates, sample by sample
    CURVATURE = auto()  # second derivatives
    ACTIVATIONS = auto()
    LOSSES = auto()  # the loss again and again, with units switched off

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


@runtime_checkable
class Noting(Protocol):
    """A method that has something to say of its scores."""

    def notes(self, total: State) -> tuple[str, ...]:
        """Return what a reader of the scores should know."""
        ...


@dataclass(frozen=True)
class Argument:
    """A field of a method that `--method-arg` may set."""

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


@dataclass(frozen=True)
class MethodInfo:
    """One row of the table."""

    name: str
    needs: Needs
    source: str
    passes: str
    """How often it runs forward and backward over the sample: a number, or words such as `K + 1`."""
    granularity: Granularity
    signed: bool
    """Whether scores below zero mean that removal promises a lower loss, not merely less importance."""
    make: Callable[..., Method]

    @property
    def summary(self) -> str:
        """What it scores, in one line."""
        return (inspect.getdoc(self.make) or "").partition("\n")[0]

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """Everything that is said of it, one line per paragraph, the summary first."""
        text = inspect.cleandoc(self.make.__doc__ or "")
        return tuple(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))

    @property
    def formula(self) -> str:
        """The paragraph that starts with the formula; empty where there is none."""
        return next((text for text in self.paragraphs if text.startswith("score = ")), "")

    @property
    def needs_data(self) -> bool:
        """Whether it reads the sample."""
        return bool(self.needs & ~Needs.PARAMETERS)

    @property
    def arguments(self) -> Mapping[str, Argument]:
        """Its arguments, by name."""
        if not dataclasses.is_dataclass(self.make):
            return {}
        hints = get_type_hints(self.make, include_extras=True)
        return {
            field.name: _argument(field.name, field.default, hints[field.name])
            for field in dataclasses.fields(self.make)
        }


def arguments_of(method: Method) -> dict[str, Any]:
    """Return what the arguments of a method are set to, as values that JSON can hold."""
    if not dataclasses.is_dataclass(method):
        return {}
    set_to = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return {name: value.value if isinstance(value, Enum) else value for name, value in set_to.items()}


def _argument(name: str, default: Any, hint: Any) -> Argument:
    kind, meaning = get_args(hint) if hasattr(hint, "__metadata__") else (hint, "")
    return Argument(name, default, kind, meaning)


_TABLE: dict[str, MethodInfo] = {}
_MethodClass = TypeVar("_MethodClass", bound=type)


def method(
    name: str,
    *,
    needs: Needs,
    source: str,
    passes: str = "0",
    granularity: Granularity = Granularity.UNIT,
    signed: bool = False,
) -> Callable[[_MethodClass], _MethodClass]:
    """Enter the class below into the table of methods."""

    def enter(make: _MethodClass) -> _MethodClass:
        if name in _TABLE:
            raise ValueError(f"Two methods are called `{name}`: {_TABLE[name].make} and {make}.")
        _TABLE[name] = MethodInfo(name, needs, source, passes, granularity, signed, make)
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
    declared = info.arguments
    return {
        name: _parsed(info, declared[name], value) if isinstance(value, str) else value
        for name, value in arguments.items()
        if name in declared
    }


def _parsed(info: MethodInfo, argument: Argument, text: str) -> object:
    """Return `text` as what the argument is."""
    try:
        if argument.kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return argument.kind(text)
    except (KeyError, ValueError):
        raise UsageError(f"`{argument.name}` of `{info.name}` is {argument.expects}, not `{text}`.") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean ...?` for the nearest known name, or nothing.

    >>> nearest("tailor-fo", ["taylor-fo", "random"])
    ' Did you mean `taylor-fo`?'
    """
    found = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean `{found[0]}`?" if found else ""
