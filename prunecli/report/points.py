"""What seeds of a sweep come to together: one point per method and budget. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Spread:
    """A number over the seeds: its mean, and how far they scatter."""

    mean: float
    deviation: float | None
    """The sample standard deviation; None of a single seed, which says nothing of it."""
    count: int


@dataclass(frozen=True)
class Point:
    """A method at one budget, over all seeds."""

    method: str
    scope: str
    name: str
    budget: str
    ratio: float
    seeds: int
    """How many there were, failed ones too."""
    failed: int
    error: str | None
    """Of the first that failed."""
    top1: Spread | None
    top5: Spread | None
    loss: Spread | None
    reached: Spread | None
    compression_error: Spread | None
    params_left: Spread | None
    macs_left: Spread | None
    """As shares of those of the dense model."""
    collapsed: Spread | None
    """How many layers have no weight left."""
    collapsed_layers: tuple[str, ...]
    """Those that collapsed with any seed."""


@dataclass(frozen=True)
class TradeOff:
    """What a sweep found, as a report shows it."""

    title: str
    """What was pruned, as in `resnet20.th`."""
    granularity: str
    """`unit` or `weight`."""
    points: tuple[Point, ...]
    """By method, then budget."""


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return mean and sample standard deviation of the numbers there are; None where there are none.

    >>> spread([1.0, 3.0])
    Spread(mean=2.0, deviation=1.4142135623730951, count=2)
    """
    found = [value for value in values if value is not None]
    if not found:
        return None
    mean = sum(found) / len(found)
    if len(found) == 1:
        return Spread(mean, None, 1)
    squares = sum((value - mean) ** 2 for value in found)
    return Spread(mean, sqrt(squares / (len(found) - 1)), len(found))
