"""What one process has seen of a sample, and how several processes put theirs together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce
from typing import Any, TypeVar

from torch import Tensor

from prunecli.importance.context import State

_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class Observations:
    """What methods made of some micro-batches: all that scores depend on."""

    states: Mapping[str, State] = field(default_factory=dict)
    """Method -> what it added up; empty where no micro-batch was seen."""
    loss: Fraction = Fraction(0)
    """The sum of the losses of samples, where a method looked at them: exact, whoever adds up what when."""
    loss_samples: int = 0
    """How many samples that is."""
    batches: int = 0
    samples: int = 0
    notes: tuple[str, ...] = ()
    last: int = -1
    """The number of the last micro-batch seen; states of which only the later one counts need it."""

    def merged(self, other: Observations) -> Observations:
        """Return what both saw."""
        if not (self.states and other.states):
            return self if self.states else other
        early, late = (self, other) if self.last <= other.last else (other, self)
        return Observations(
            {name: state.merged(late.states[name]) for name, state in early.states.items()},
            self.loss + other.loss,
            self.loss_samples + other.loss_samples,
            self.batches + other.batches,
            self.samples + other.samples,
            tuple(dict.fromkeys((*self.notes, *other.notes))),
            late.last,
        )

    @property
    def mean_loss(self) -> float | None:
        """The mean loss over the samples; None where no method looked at it."""
        return float(self.loss / self.loss_samples) if self.loss_samples else None


def _alone(own: Observations) -> Iterable[Observations]:
    return (own,)


class Gathered(Mapping[str, Tensor]):
    """Parts of parameters by name -> the whole ones, each brought together when it is asked for.

    All processes ask for the same ones, in the same order; nobody keeps them.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        self.parts = parts

    def __getitem__(self, name: str) -> Tensor:
        """Return a whole parameter."""
        part: Any = self.parts[name]
        whole: Tensor = part.full_tensor()
        return whole

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self.parts)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.parts)


def in_step(full: int, has_rest: bool, rank: int, count: int) -> list[tuple[int, int | None]]:
    """Return what a process reads so that all run the same sizes: (batch, its number or None) each time.

    Args:
        full: How many batches of full size there are; after them may come a smaller one.
        has_rest: Whether it does.
        rank: Which process.
        count: Of how many.

    >>> in_step(3, True, 0, 2), in_step(3, True, 1, 2)
    ([(0, 0), (2, 2), (3, 3)], [(1, 1), (0, None), (3, None)])
    """
    mine = [place + rank for place in range(0, full, count)]
    steps: list[tuple[int, int | None]] = [(each, each) if each < full else (0, None) for each in mine]
    return [*steps, (full, full if rank == 0 else None)] if has_rest else steps


@dataclass(frozen=True)
class Share:
    """Which micro-batches a process looks at: every `count`-th, from `rank` on.

    Every process sees the whole stream of micro-batches and skips those of the others, so that each
    keeps its number; or, where the stream `is_dealt`, it holds this process's alone. `exchange` is how it
    hears of the others: it takes what this process saw and returns what all saw, by rank.

    Where the network itself `is_parted` among processes, all must run it equally often, on micro-batches of
    the same size; then `order` says which micro-batch each one of the stream is, None for those that only
    keep step and are not counted.
    """

    rank: int = 0
    count: int = 1
    exchange: Callable[[Observations], Iterable[Observations]] = _alone
    is_dealt: bool = False
    is_parted: bool = False
    order: Sequence[int | None] | None = None

    def numbered(self, stream: Iterable[_Item]) -> Iterator[tuple[int | None, _Item]]:
        """Yield this process's micro-batches, with their numbers among all.

        >>> list(Share(1, 2).numbered("abcde")), list(Share(1, 2, is_dealt=True).numbered("bd"))
        ([(1, 'b'), (3, 'd')], [(1, 'b'), (3, 'd')])
        """
        if self.order is not None:
            return zip(self.order, stream, strict=True)
        if self.is_dealt:
            return ((self.rank + self.count * place, item) for place, item in enumerate(stream))
        return ((number, item) for number, item in enumerate(stream) if number % self.count == self.rank)

    def together(self, own: Observations) -> Observations:
        """Return what all processes saw."""
        return reduce(Observations.merged, self.exchange(own))
