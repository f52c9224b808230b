"""What a sweep found: one row per method, budget and seed, and what seeds come to together. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

from prunecli.errors import InputError
from prunecli.report.values import Change, Environment
from prunecli.strict_json import FieldError, Json, from_plain, to_plain

SWEEP_VERSION = 1
_SUMMARY = "summary"
"""Part of the JSON that follows from the rows: written for other programs, and not read."""


@dataclass(frozen=True)
class TrialFigures:
    """What one trial came to. Accuracies are shares of 1, None where they have no meaning."""

    params: Change
    """All parameters, and those left: not masked, or still there."""
    macs: Change
    """Multiply-accumulates for one sample, and those with weights that are left."""
    pruned: Change
    """What could go, and what of it is left: weights, or units."""
    reached: float | None
    """r_e: what there was / what is left, of what the budget counts; None where nothing is left."""
    collapsed: tuple[str, ...] = ()
    """Layers of which no weight is left."""
    samples: int = 0
    """How many the accuracy was measured on; 0 where there was no test data."""
    loss: float | None = None
    top1: float | None = None
    top5: float | None = None


@dataclass(frozen=True)
class SweepRow:
    """One trial: what was asked for, and what it came to, or why there is nothing."""

    method: str
    scope: str
    budget: str
    """As users write it, as in `ratio=32`."""
    ratio: float
    """The compression r that the budget asks for: what there was / what may stay."""
    seed: int
    figures: TrialFigures | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """The method, with the scope where that is not the usual one.

        >>> SweepRow("snip", "layer", "ratio=2", 2.0, 0).name
        'snip@layer'
        """
        return self.method if self.scope == "global" else f"{self.method}@{self.scope}"

    @property
    def compression_error(self) -> float | None:
        """(r - r_e) / r: positive where too little went."""
        reached = self.figures.reached if self.figures else None
        return None if reached is None else (self.ratio - reached) / self.ratio


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
class SweepReport:
    """Methods side by side, over budgets and seeds."""

    title: str
    """What was pruned, as in `resnet20.th`."""
    granularity: str
    """`unit` or `weight`."""
    rows: tuple[SweepRow, ...]
    """By method, then budget, then seed."""
    settings: Mapping[str, Json] = field(default_factory=dict)
    """What held for all trials, in the order to show it."""
    environment: Environment | None = None

    def to_json(self) -> str:
        """Return the versioned JSON text, ending in a newline."""
        plain = {"version": SWEEP_VERSION, **to_plain(self), _SUMMARY: to_plain(summarise(self.rows))}
        return json.dumps(plain, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "sweep") -> SweepReport:
        """Read what `to_json` wrote.

        Raises:
            InputError: It is no sweep, or was written by a newer prunecli.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(f"`{where}` is not JSON. Expected what `prunecli sweep` wrote.") from None
        version = data.pop("version", None) if isinstance(data, dict) else None
        if type(version) is not int or version < 1:
            raise InputError(f"`{where}` is no sweep of prunecli: it has no `version` number.")
        if version > SWEEP_VERSION:
            raise InputError(
                f"`{where}` has version {version}, but this prunecli reads up to {SWEEP_VERSION}. "
                "Update prunecli."
            )
        data.pop(_SUMMARY, None)
        try:
            return from_plain(cls, data)
        except (FieldError, RecursionError) as error:
            raise InputError(f"`{where}`: {error}.") from None


def summarise(rows: Iterable[SweepRow]) -> tuple[Point, ...]:
    """Return one point per method and budget, in the order of the rows."""
    together: dict[tuple[str, str], list[SweepRow]] = {}
    for row in rows:
        together.setdefault((row.name, row.budget), []).append(row)
    return tuple(_point(same) for same in together.values())


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


def _point(rows: Sequence[SweepRow]) -> Point:
    first = rows[0]
    failed = [row for row in rows if row.figures is None]

    def over(read: Callable[[TrialFigures], float | None]) -> Spread | None:
        return spread([read(row.figures) if row.figures else None for row in rows])

    layers = (name for row in rows if row.figures for name in row.figures.collapsed)
    return Point(
        method=first.method,
        scope=first.scope,
        name=first.name,
        budget=first.budget,
        ratio=first.ratio,
        seeds=len(rows),
        failed=len(failed),
        error=failed[0].error if failed else None,
        top1=over(lambda found: found.top1),
        top5=over(lambda found: found.top5),
        loss=over(lambda found: found.loss),
        reached=over(lambda found: found.reached),
        compression_error=spread([row.compression_error for row in rows]),
        params_left=over(lambda found: found.params.ratio),
        macs_left=over(lambda found: found.macs.ratio),
        collapsed=over(lambda found: float(len(found.collapsed))),
        collapsed_layers=tuple(dict.fromkeys(layers)),
    )
