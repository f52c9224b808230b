"""Scores + limits -> in which order units would go, whatever the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_never

from prunecli.budget.limits import Limit
from prunecli.plan import Scope

_AT_ONCE = -1
"""The step of units that go whatever the budget."""


@dataclass(frozen=True, eq=False)
class Removal:
    """The order: at step s, the units ranked s go. Units ranked `steps` never do."""

    ranks: Mapping[str, NDArray[np.int64]]
    steps: int

    def kept_after(self, steps: int) -> dict[str, NDArray[np.bool_]]:
        """Return a bool per unit, True where it stays after so many steps."""
        return {name: ranks >= steps for name, ranks in self.ranks.items()}


def order_removal(
    scores: Mapping[str, NDArray[np.float64]], limits: Mapping[str, Limit], scope: Scope
) -> Removal:
    """Rank the units of all groups, lowest score first, ties by position.

    A group goes down its allowed widths step by step. A step that removes several units (`--round-to`)
    counts with their mean score, and never with less than the step before it.

    Args:
        scores: Group name -> one number per unit, in the order that breaks ties.
        limits: Group name -> the widths it may have.
        scope: Whether steps compete by score, or take turns so that all groups lose the same share.
    """
    in_group = {name: np.argsort(values, kind="stable") for name, values in scores.items()}
    bounds = {name: len(scores[name]) - np.array(limits[name].allowed) for name in scores}
    priorities = [_priorities(values[in_group[name]], bounds[name], scope) for name, values in scores.items()]
    order = np.argsort(np.concatenate([*priorities, np.zeros(0)]), kind="stable")
    step_of = np.empty(len(order), dtype=np.int64)
    step_of[order] = np.arange(len(order))

    ranks, first = {}, 0
    for name, removed in bounds.items():
        steps = step_of[first : first + len(removed) - 1]
        gone_at = np.full(len(scores[name]), len(order), dtype=np.int64)
        gone_at[: removed[0]] = _AT_ONCE
        gone_at[removed[0] : removed[-1]] = np.repeat(steps, np.diff(removed))
        ranks[name] = np.empty_like(gone_at)
        ranks[name][in_group[name]] = gone_at
        first += len(steps)
    return Removal(ranks, len(order))


def _priorities(
    ascending: NDArray[np.float64], removed: NDArray[np.int64], scope: Scope
) -> NDArray[np.float64]:
    """Return one number per step of a group, never falling: steps with lower numbers go first."""
    if len(removed) < 2:
        return np.zeros(0)
    match scope:
        case Scope.GLOBAL:
            sums = np.add.reduceat(ascending[: removed[-1]], removed[:-1])
            return np.maximum.accumulate(sums / np.diff(removed))
        case Scope.LAYER:
            return removed[1:] / len(ascending)
        case _:
            assert_never(scope)
