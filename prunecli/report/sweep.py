"""What a sweep found: one row per method, budget and seed, and what seeds come to together. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prunecli.errors import InputError
from prunecli.report.points import Point, Spread, TradeOff, spread
from prunecli.report.values import Change, Environment
from prunecli.strict_json import FieldError, Json, VersionError, from_plain, read_versioned, to_plain

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
        """(r - r_e) / r: positive where too little went. None where r is none, being below 1."""
        reached = self.figures.reached if self.figures else None
        return None if reached is None or self.ratio < 1 else (self.ratio - reached) / self.ratio


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

    @property
    def trade_off(self) -> TradeOff:
        """What the seeds of each method and budget come to together."""
        return TradeOff(self.title, self.granularity, summarise(self.rows))

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
            data = read_versioned(text, SWEEP_VERSION, f"`{where}`")
            data.pop(_SUMMARY, None)
            return from_plain(cls, data)
        except VersionError as error:
            raise InputError(f"{error} Expected what `prunecli sweep` wrote.") from None
        except (FieldError, RecursionError) as error:
            raise InputError(f"`{where}`: {error}.") from None


def summarise(rows: Iterable[SweepRow]) -> tuple[Point, ...]:
    """Return one point per method and budget, in the order of the rows."""
    together: dict[tuple[str, str], list[SweepRow]] = {}
    for row in rows:
        together.setdefault((row.name, row.budget), []).append(row)
    return tuple(_point(same) for same in together.values())


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
