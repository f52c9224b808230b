"""What one process has seen of a sample, and how several processes put theirs together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

from prunecli.importance.context import State


@dataclass(frozen=True, eq=False)
class Observations:
    """What methods made of some micro-batches: all that scores depend on."""

    states: Mapping[str, State] = field(default_factory=dict)
    """Method -> what it added up; empty where no micro-batch was seen."""
    losses: Mapping[int, tuple[float, int]] = field(default_factory=dict)
    """Micro-batch -> its mean loss, where a method looked at it, and how many samples it has."""
    batches: int = 0
    samples: int = 0
    notes: tuple[str, ...] = ()

    def merged(self, other: Observations) -> Observations:
        """Return what both saw."""
        if not (self.states and other.states):
            return self if self.states else other
        return Observations(
            {name: state.merged(other.states[name]) for name, state in self.states.items()},
            {**self.losses, **other.losses},
            self.batches + other.batches,
            self.samples + other.samples,
            tuple(dict.fromkeys((*self.notes, *other.notes))),
        )

    @property
    def mean_loss(self) -> float | None:
        """The mean loss over the samples; None where no method looked at it."""
        samples = sum(count for _, count in self.losses.values())
        return sum(loss * count for loss, count in self.losses.values()) / samples if samples else None


def _alone(own: Observations) -> Sequence[Observations]:
    return (own,)


@dataclass(frozen=True)
class Share:
    """Which micro-batches a process looks at: every `count`-th, from `rank` on.

    Every process sees the whole stream of micro-batches and skips those of the others, so that each
    keeps its number. `exchange` is how it hears of the others: it takes what this process saw and
    returns what all saw, by rank.
    """

    rank: int = 0
    count: int = 1
    exchange: Callable[[Observations], Sequence[Observations]] = _alone

    def has(self, number: int) -> bool:
        """Return whether a micro-batch is this process's."""
        return number % self.count == self.rank

    def together(self, own: Observations) -> Observations:
        """Return what all processes saw."""
        return reduce(Observations.merged, self.exchange(own))
