"""Layers that lose the same share at every cut -> their widths after each, and which cut meets a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import floor

import numpy as np
from typing_extensions import assert_never

from prunecli.budget import Budget, Currency
from prunecli.budget.limits import Limit, find_limits
from prunecli.graph.structure import Group, Kept, Role, SiteKind, Structure
from prunecli.importance.readings import readings, refuse_unread
from prunecli.plan import Constraints

Widths = Mapping[str, int]
"""Group -> how many of its units stay."""


@dataclass(frozen=True)
class Narrowing:
    """What leaves a network cut by cut, of which every layer loses the same share each time.

    Widths follow from the dense network, so that rounding (`--round-to`) delays units and loses none.
    """

    structure: Structure
    constraints: Constraints
    budget: Budget | None
    """None: until the layers are as narrow as they get."""
    percent: float
    conv: bool
    """Whether units of convolutions go too."""

    @cached_property
    def dense(self) -> Widths:
        """The groups that may be cut, and how wide they are; not those that constraints leave whole."""
        return {
            group.name: group.width
            for group in self.structure.groups
            if (refuse_unread(group) is None if self.conv else is_neurons(group))
            and self._limits[group.name].allowed[-1] < group.width
        }

    def after(self, cuts: int) -> Widths:
        """Return how wide layers are after so many cuts, as far as constraints let them be."""
        widths = dict(self.dense)
        for _ in range(cuts):
            widths = {name: narrowed(width, self.percent) for name, width in widths.items()}
        return {name: _allowed(self._limits[name], width) for name, width in widths.items()}

    @cached_property
    def most(self) -> int:
        """The cut after which no other one changes anything."""
        cuts = max((_cuts_to_one(width, self.percent) for width in self.dense.values()), default=0)
        return max((cut for cut in range(1, cuts + 1) if self.after(cut) != self.after(cut - 1)), default=0)

    @cached_property
    def cuts_to_budget(self) -> int | None:
        """How many cuts meet the budget; None if none do."""
        return next(
            (cuts for cuts in range(self.most + 1) if self.is_met(self._first(self.after(cuts)))), None
        )

    def left(self, kept: Kept) -> int:
        """Return how many units are left of those that may go."""
        return sum(int(kept[name].sum()) for name in self.dense)

    def is_met(self, kept: Kept) -> bool:
        """Return whether no more is left than the budget allows; it counts the units that may go only."""
        if self.budget is None:
            return False
        by_constraint = {name: self._limits[name].settled for name in self.dense}
        settled = sum(
            _allowed(self._limits[name], 1) for name, is_settled in by_constraint.items() if is_settled
        )
        free = sum(self.dense[name] for name, is_settled in by_constraint.items() if not is_settled)
        whole = self._amount(self._first(self.dense))
        return self._amount(kept) <= self.budget.allowed(whole, settled=settled, free=free)

    @cached_property
    def _limits(self) -> Mapping[str, Limit]:
        return find_limits(self.structure, self.constraints)

    def _amount(self, kept: Kept) -> int:
        assert self.budget is not None
        match self.budget.currency:
            case Currency.UNITS:
                return self.left(kept)
            case Currency.MACS:
                return self.structure.macs(kept)
            case Currency.PARAMS:
                return self.structure.parameter_count(kept)
            case _:
                assert_never(self.budget.currency)

    def _first(self, widths: Widths) -> Kept:
        """Return masks that keep so many units, to see what that comes to."""
        return {name: np.arange(width) < widths[name] for name, width in self.dense.items()}


def narrowed(width: int, percent: float) -> int:
    """Return how many of a layer's units stay when the lowest so many percent of them go: at least one.

    >>> narrowed(50, 10.0), narrowed(21, 10.0), narrowed(9, 10.0), narrowed(1, 10.0)
    (45, 18, 8, 1)
    """
    return max(floor(width * (1 - Fraction(repr(percent)) / 100)), 1)


def is_neurons(group: Group) -> bool:
    """Return whether they are neurons of one linear layer that linear layers read.

    What several layers make together (a residual stream), what is normalised or averaged over, and what
    fills several rows (the heads of attention) is more than a neuron.
    """
    if group.changes_statistics or refuse_unread(group) is not None:
        return False
    if any(site.call.function != "linear" for site in readings(group)):
        return False
    weights = [member for member in group.producers if member.role is Role.WEIGHT]
    if len(weights) != 1 or len(weights[0].positions) != group.width:
        return False
    return weights[0].tensor in set(_made_by_linear(group))


def _made_by_linear(group: Group) -> Iterator[str]:
    for site in group.sites:
        if site.kind is SiteKind.MADE and site.call.function == "linear":
            yield from site.tensors


def _cuts_to_one(width: int, percent: float) -> int:
    cuts = 0
    while width > 1:
        width, cuts = narrowed(width, percent), cuts + 1
    return cuts


def _allowed(limit: Limit, width: int) -> int:
    """Return the width that a layer gets where it should have so many units: never fewer."""
    if limit.settled:
        return max(width, limit.allowed[0])
    return min(allowed for allowed in limit.allowed if allowed >= width)
