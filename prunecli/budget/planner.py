"""Scores + structure + budget -> Plan: which units stay, solved exactly against the cost model."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunecli.budget.amounts import Budget, Currency, rounded
from prunecli.budget.cost import CostModel, StepCosts, cost_model
from prunecli.budget.limits import Limit, find_limits
from prunecli.budget.removal import order_removal
from prunecli.errors import BudgetError, InputError
from prunecli.graph.structure import Kept, Structure
from prunecli.plan import Constraints, Plan, Rank, Scope

if TYPE_CHECKING:
    from prunecli.importance.scores import Scores


@dataclass(frozen=True)
class Range:
    """What of a budget can be reached under the constraints."""

    currency: Currency
    lowest: int
    highest: int
    dense: int
    wanted: int

    @property
    def holds_wanted(self) -> bool:
        """Whether some plan meets the budget. More than there is, is met by cutting nothing."""
        return self.lowest <= self.wanted

    def describe(self) -> str:
        """Return the range in words.

        >>> Range(Currency.MACS, 250, 1000, 1000, 500).describe()
        'from 250 (25.0 %) to 1,000 (100.0 %) of 1,000 macs'
        """
        low, high = (f"{value:,} ({value / max(self.dense, 1):.1%})" for value in (self.lowest, self.highest))
        return f"from {low} to {high} of {self.dense:,} {self.currency.value}".replace("%", " %")


def feasible(structure: Structure, budget: Budget | str, constraints: Constraints | None = None) -> Range:
    """Return what of the budget's currency can be reached, before any unit is scored.

    Raises:
        UsageError: The budget or a constraint cannot be understood.
    """
    budget = _parsed(budget)
    no_scores = {group.name: np.zeros(group.width) for group in structure.groups}
    limits = find_limits(structure, constraints or Constraints())
    removal = order_removal(no_scores, limits, Scope.GLOBAL)
    costs = StepCosts(cost_model(structure, budget.currency), removal.ranks)
    return _range(budget, limits, costs, removal.steps)


def check_reach(structure: Structure, budget: Budget | str, constraints: Constraints | None = None) -> Range:
    """Make sure, before any unit is scored, that a budget can be met; return the range that can.

    Raises:
        UsageError: The budget or a constraint cannot be understood.
        BudgetError: No plan meets the budget; the message gives the range.
    """
    budget = _parsed(budget)
    found = feasible(structure, budget, constraints)
    if not found.holds_wanted:
        raise BudgetError(
            f"`{budget.text}` cannot be met: the constraints allow {found.describe()}. "
            "Ask for more, or loosen --min-keep, --round-to, --ignore or --keep-layer."
        )
    return found


def make_plan(
    structure: Structure,
    scores: Scores,
    *,
    budget: Budget | str,
    scope: Scope = Scope.GLOBAL,
    rank: Rank | None = None,
    constraints: Constraints | None = None,
    digests: Mapping[str, str] | None = None,
) -> Plan:
    """Decide which units stay: the lowest go, no more of them than the budget asks for.

    Args:
        structure: The groups, and what they cost.
        scores: One score per unit.
        budget: What may stay.
        scope: Among which units the lowest are looked for.
        rank: What units are ordered by; by default the score for units, the score over what removing the
            unit frees for MACs and parameters.
        constraints: What else the plan respects.
        digests: What to note in the plan about where it comes from.

    Raises:
        UsageError: The budget or a constraint cannot be understood.
        InputError: The scores are of another network.
        BudgetError: No plan meets the budget under the constraints; the message gives the range.
    """
    budget, constraints = _parsed(budget), constraints or Constraints()
    rank = rank or (Rank.SCORE if budget.currency is Currency.UNITS else Rank.SCORE_PER_COST)
    limits = find_limits(structure, constraints)
    if scope is Scope.LAYER and budget.of_free and isinstance(budget.limit, Fraction):
        limits = _settle_each(limits, budget.limit)
    model = cost_model(structure, budget.currency)
    values = _values(structure, scores)
    removal = order_removal(values if rank is Rank.SCORE else _per_cost(values, model), limits, scope)
    kept = removal.kept_after(_steps_to_meet(budget, limits, StepCosts(model, removal.ranks), removal.steps))
    _refuse_nothing_left(structure, kept)
    return Plan(
        keep={name: tuple(np.flatnonzero(stays).tolist()) for name, stays in kept.items()},
        widths={group.name: group.width for group in structure.groups},
        method=scores.method,
        scope=scope,
        rank=rank,
        budget=budget.text,
        constraints=constraints,
        seed=scores.about.seed,
        digests=dict(digests or {}),
    )


def _parsed(budget: Budget | str) -> Budget:
    return Budget.parse(budget) if isinstance(budget, str) else budget


def _settle_each(limits: Mapping[str, Limit], share: Fraction) -> dict[str, Limit]:
    """Let each group keep the share by itself, or as near to it as its allowed widths come."""
    settled = {}
    for name, limit in limits.items():
        target = rounded(share * limit.allowed[0])
        width = next((width for width in limit.allowed if width <= target), limit.allowed[-1])
        settled[name] = limit if limit.settled else Limit((width,), settled=True)
    return settled


def _values(structure: Structure, scores: Scores) -> dict[str, NDArray[np.float64]]:
    """Return the scores as arrays, in the order of the structure's groups."""
    values = {}
    for group in structure.groups:
        if group.name not in scores.by_group or len(scores.by_group[group.name]) != group.width:
            raise InputError(
                f"The scores do not fit `{group.name}` ({group.width} units): they are of another network. "
                "Score again."
            )
        values[group.name] = np.asarray(scores.by_group[group.name], dtype=np.float64)
    return values


def _per_cost(values: Mapping[str, NDArray[np.float64]], model: CostModel) -> dict[str, NDArray[np.float64]]:
    """Return values over what each unit frees; units that free nothing go last."""
    freed = model.freed_by_unit()
    ratios = {}
    for name, value in values.items():
        cost = freed.get(name, np.zeros(len(value)))
        weighted = value * np.where(value < 0, np.square(cost), 1.0)  # below zero, freeing more is better
        ratios[name] = np.divide(weighted, cost, out=np.full(len(value), np.inf), where=cost > 0)
    return ratios


def _steps_to_meet(budget: Budget, limits: Mapping[str, Limit], costs: StepCosts, steps: int) -> int:
    """Return the least number of steps that meets the budget."""
    found = _range(budget, limits, costs, steps)
    if not found.holds_wanted:
        raise BudgetError(
            f"`{budget.text}` cannot be met: that is {found.wanted:,} {budget.currency.value}, and the plan "
            f"can have {found.describe()}. Ask for more, or loosen --min-keep, --round-to or --ignore."
        )
    return bisect_left(range(steps), True, key=lambda step: costs.after(step) <= found.wanted)


def _range(budget: Budget, limits: Mapping[str, Limit], costs: StepCosts, steps: int) -> Range:
    settled = sum(limit.allowed[0] for limit in limits.values() if limit.settled)
    free = sum(limit.allowed[0] for limit in limits.values() if not limit.settled)
    dense = costs.model.at(costs.model.lengths)
    wanted = budget.allowed(dense, settled=settled, free=free)
    return Range(budget.currency, costs.after(steps), costs.after(0), dense, wanted)


def _refuse_nothing_left(structure: Structure, kept: Kept) -> None:
    """Make sure that every tensor keeps something, also where several groups own its positions."""
    checked: set[int] = set()  # by identity: tensors share axes
    for name, tensor in structure.tensors.items():
        for dim, axis in enumerate(tensor.axes):
            if axis is None or id(axis) in checked:
                continue
            checked.add(id(axis))
            if axis.kept_length(kept) == 0:
                raise BudgetError(
                    f"The plan would leave nothing of dimension {dim} of `{name}`. Raise --min-keep, "
                    f"or leave the layer alone with `--ignore {name.rpartition('.')[0] or name}`."
                )
