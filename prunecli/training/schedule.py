"""What a schedule is: when phases begin and end, and what leaves the model meanwhile; and the table of them.

A schedule is one class in one file, as a method is:

    @schedule("contribution", source="...", prunes=True)
    @dataclass
    class ByContribution(Schedule):
        every: Annotated[int, "Epochs between two cuts."] = 15

Its docstring's first line is the summary that `prunecli schedules` prints, its fields are what
`--schedule-arg NAME=VALUE` may set. The training loop knows none of them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from prunecli.arguments import nearest, parse_arguments
from prunecli.budget import Budget, Currency
from prunecli.data import Batch
from prunecli.errors import UsageError
from prunecli.history import EpochRow
from prunecli.importance.gradients import LossFn
from prunecli.importance.micro_batches import MicroBatch
from prunecli.named import Named, Table
from prunecli.plan import Constraints, Rank, Scope
from prunecli.strict_json import Json
from prunecli.training.training import Phase, Training


@dataclass(frozen=True)
class Wishes:
    """What the user wants to be left, and how importance is measured, for schedules that prune."""

    budget: Budget | None = None
    """None: the schedule has its own rule."""
    scope: Scope = Scope.GLOBAL
    rank: Rank | None = None
    constraints: Constraints = Constraints()
    method: str | None = None
    """None: the schedule's own."""
    method_args: Mapping[str, object] | None = None
    loss_fn: LossFn | None = None
    seed: int = 0
    fresh: Callable[[int], nn.Module] | None = None
    """Builds the dense model anew, its parameters drawn from a seed; None for one that came with its own."""
    sample: Callable[[int | None], Iterable[Batch]] | None = None
    """Yields so many of the training samples (None: all), the same each time, as the model takes them."""

    @property
    def order(self) -> Rank:
        """What units are ordered by: as asked for, else score for units and score per cost otherwise."""
        if self.rank is not None or self.budget is None:
            return self.rank or Rank.SCORE
        return Rank.SCORE if self.budget.currency is Currency.UNITS else Rank.SCORE_PER_COST


class Schedule:
    """What happens while a model trains. This one lets it train: one phase, nothing leaves."""

    info: ClassVar[ScheduleInfo]
    wishes: Wishes = Wishes()
    """Set by the story before anything starts."""

    @property
    def method(self) -> str | None:
        """The importance method that decides which units leave; None where no method does."""
        return None

    def check(self, training: Training) -> None:
        """Refuse a recipe, a budget or a network that the schedule cannot work with, before it starts.

        Raises:
            UsageError: naming what contradicts what.
        """

    def first_phase(self, training: Training) -> Phase:
        """Return what the run starts with."""
        return Phase("training", training.recipe.epochs)

    def next_phase(self, training: Training) -> Phase | None:
        """Act between two phases (cut, start anew), and return the next one; None: the run is over."""
        return None

    def may_stop_early(self, training: Training) -> bool:
        """Say whether `--patience` may end the phase: not where units are still to leave."""
        return True

    @property
    def looks_at_samples(self) -> bool:
        """Whether `after_backward` looks at the samples of the minibatch again, not at gradients alone."""
        return False

    def watching(self, training: Training) -> AbstractContextManager[Any]:
        """Return what watches the forward pass of a minibatch; of several processes, of this one's part."""
        return nullcontext()

    def after_backward(self, training: Training, batch: MicroBatch) -> None:
        """See a minibatch whose gradients are there and whose step is not: the place to score.

        Every one of several processes sees the whole minibatch, and so the same; where `looks_at_samples`
        says that nobody looks, its size alone.
        """

    def before_step(self, training: Training) -> None:
        """Change the gradients that the optimizer is about to follow, before they are clipped."""

    def after_step(self, training: Training, loss: float) -> None:
        """Act after a minibatch, whose mean loss is given."""

    def after_epoch(self, training: Training, row: EpochRow) -> EpochRow:
        """Act after an epoch, before its row is written down; return the row, with what there is to add."""
        return row

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a run must keep to go on from here."""
        return {}

    def plain(self) -> dict[str, Json]:
        """Return the other values."""
        return {}

    def load(self, training: Training, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `plain` gave; the training is at the same point already."""

    def facts(self, training: Training) -> dict[str, Json]:
        """Return figures of the whole run for the report."""
        return {}


@dataclass(frozen=True)
class ScheduleInfo(Named):
    """One row of the table."""

    name: str
    source: str
    prunes: bool
    """Whether units leave, so that groups must be found."""
    make: Callable[..., Schedule]
    usual: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that it brings where the user sets none: group of settings -> values, as in a preset."""
    idle: tuple[str, ...] = ()
    """Options, as fields are called, that do nothing under it."""


_TABLE: Table[ScheduleInfo] = Table("schedule")
_ScheduleClass = TypeVar("_ScheduleClass", bound=type)


def schedule(
    name: str,
    *,
    source: str,
    prunes: bool,
    usual: Mapping[str, Mapping[str, Any]] | None = None,
    idle: tuple[str, ...] = (),
) -> Callable[[_ScheduleClass], _ScheduleClass]:
    """Enter the class below into the table of schedules."""

    def enter(make: _ScheduleClass) -> _ScheduleClass:
        make.info = _TABLE.enter(ScheduleInfo(name, source, prunes, make, usual or {}, idle))  # type: ignore[attr-defined]
        return make

    return enter


def schedules() -> tuple[ScheduleInfo, ...]:
    """Return all schedules, by name."""
    return _TABLE.all()


def find_schedule(name: str) -> ScheduleInfo:
    """Return the schedule called `name`.

    Raises:
        UsageError: There is none; the message names the nearest.
    """
    return _TABLE.find(name)


def build_schedule(name: str, arguments: Mapping[str, object], wishes: Wishes) -> Schedule:
    """Make the schedule called `name`.

    Raises:
        UsageError: The name or an argument is unknown, or a value does not fit.
    """
    info = find_schedule(name)
    for argument in arguments:
        if argument not in info.arguments:
            others = nearest(argument, info.arguments) or " It takes none." * (not info.arguments)
            raise UsageError(f"No argument `{argument}` in schedule `{name}`.{others}")
    built = info.make(**parse_arguments(name, info.arguments, arguments))
    built.wishes = wishes
    return built
