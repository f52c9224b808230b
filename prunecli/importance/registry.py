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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Any, Protocol, TypeVar, runtime_checkable

from prunecli.arguments import nearest, parse_arguments
from prunecli.errors import UsageError
from prunecli.graph.structure import Group, Member
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.named import Named, Table


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
    """A way to score units. Higher = keep, always. One that scores weights is a `weights.WeightMethod`."""

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
class MethodInfo(Named):
    """One row of the table."""

    name: str
    needs: Needs
    source: str
    passes: str
    """How often it runs forward and backward over the sample: a number, or words such as `K + 1`."""
    granularity: Granularity
    signed: bool
    """Whether scores below zero mean that removal promises a lower loss, not merely less importance."""
    make: Callable[..., Any]
    """Makes a `Method`, or a `weights.WeightMethod`, from its arguments."""
    while_training: bool = True
    """Whether it can score weights that move from one minibatch to the next."""

    @property
    def formula(self) -> str:
        """The paragraph that starts with the formula; empty where there is none."""
        return next((text for text in self.paragraphs if text.startswith("score = ")), "")

    @property
    def needs_data(self) -> bool:
        """Whether it reads the sample."""
        return bool(self.needs & ~Needs.PARAMETERS)


_TABLES: Mapping[Granularity, Table[MethodInfo]] = {each: Table("method") for each in Granularity}
_MethodClass = TypeVar("_MethodClass", bound=type)


def method(
    name: str,
    *,
    needs: Needs,
    source: str,
    passes: str = "0",
    granularity: Granularity = Granularity.UNIT,
    signed: bool = False,
    while_training: bool = True,
) -> Callable[[_MethodClass], _MethodClass]:
    """Enter the class below into the table of methods."""

    def enter(make: _MethodClass) -> _MethodClass:
        info = MethodInfo(name, needs, source, passes, granularity, signed, make, while_training)
        _TABLES[granularity].enter(info)
        return make

    return enter


def methods(granularity: Granularity = Granularity.UNIT) -> tuple[MethodInfo, ...]:
    """Return all methods that score units, or weights, by name."""
    return _TABLES[granularity].all()


def find_method(name: str, granularity: Granularity = Granularity.UNIT) -> MethodInfo:
    """Return the method called `name`.

    Raises:
        UsageError: There is none; the message names the nearest, or says what the method does score.
    """
    there = {each for each in Granularity if any(info.name == name for info in methods(each))}
    if there and granularity not in there:
        (other,) = there
        remedy = "Add" if other is Granularity.WEIGHT else "Leave out"
        raise UsageError(
            f"`{name}` scores {other.value}s, not {granularity.value}s. {remedy} `--granularity weight`, or "
            "choose another; `prunecli methods` lists them all."
        )
    return _TABLES[granularity].find(name)


def build_methods(
    names: Iterable[str], arguments: Mapping[str, object], granularity: Granularity = Granularity.UNIT
) -> dict[str, Any]:
    """Make the methods called `names`; each takes those of the `arguments` that it declares.

    Raises:
        UsageError: A name or an argument is unknown, or a value does not fit.
    """
    infos = [find_method(name, granularity) for name in names]
    declared = {argument: info.name for info in infos for argument in info.arguments}
    nothing = " It takes none." if len(infos) == 1 else " They take none."
    for argument in arguments:
        if argument not in declared:
            raise UsageError(
                f"No argument `{argument}` in {', '.join(f'`{info.name}`' for info in infos)}."
                f"{nearest(argument, declared) or nothing * (not declared)}"
            )
    return {info.name: info.make(**parse_arguments(info.name, info.arguments, arguments)) for info in infos}
