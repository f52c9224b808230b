"""Plans meet their budgets exactly, and say when they cannot."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunecli.budget import Currency, feasible, make_plan
from prunecli.errors import BudgetError, InputError, UsageError
from prunecli.graph.structure import Axis, CostTerm, Group, Owner, Role, Structure, TensorAxes
from prunecli.importance.scores import About, Scores
from prunecli.plan import Constraints, Plan, Rank, Scope
from tests.structures import CASES, Case, conv_norm, mlp, residual


def scores_of(values: Mapping[str, Sequence[float]]) -> Scores:
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    return Scores(About("toy", seed=3), tensors)


def drawn(structure: Structure, seed: int = 0) -> Scores:
    generator = np.random.default_rng(seed)
    return scores_of({group.name: generator.random(group.width).round(1) for group in structure.groups})


MLP = {"0": [0.5, 0.1, 0.9, 0.2, 0.7, 0.3], "2": [0.4, 0.6, 0.05, 0.8, 0.15]}


def planned(values: Mapping[str, Sequence[float]] = MLP, budget: str = "keep=0.5", **options: object) -> Plan:
    return make_plan(mlp().structure, scores_of(values), budget=budget, **options)


def test_the_lowest_go_among_all() -> None:
    plan = planned(budget="units=6")
    assert plan.keep == {"0": (0, 2, 4), "2": (0, 1, 3)}
    assert (plan.method, plan.seed, plan.budget, plan.rank) == ("toy", 3, "units=6", Rank.SCORE)


def test_the_lowest_go_in_each_layer() -> None:
    assert planned(scope=Scope.LAYER).keep == {"0": (0, 2, 4), "2": (0, 1, 3)}  # 3 and 2.5, halves up
    assert planned(budget="keep=0.2", scope=Scope.LAYER).keep == {"0": (2,), "2": (3,)}
    assert planned(budget="units=0.5", scope=Scope.LAYER).kept_count == 6


def test_ties_break_by_position_and_exactly_the_number_is_kept() -> None:
    flat = {"0": [0.0] * 6, "2": [0.0] * 5}
    assert planned(flat, "units=7").keep == {"0": (4, 5), "2": (0, 1, 2, 3, 4)}
    assert planned(flat, "units=3").keep == {"0": (5,), "2": (3, 4)}


@pytest.mark.parametrize("scope", tuple(Scope))
def test_keeping_all_is_the_identity(scope: Scope) -> None:
    for budget in ("keep=1.0", "macs=1.0", "params=1.0", "macs=9T"):
        assert planned(budget=budget, scope=scope).keep == {"0": tuple(range(6)), "2": tuple(range(5))}


def test_each_group_keeps_its_least() -> None:
    low = {"0": [0.0] * 6, "2": [1.0] * 5}
    assert planned(low, "units=5").keep == {"0": (5,), "2": (1, 2, 3, 4)}
    half = planned(low, "units=7", constraints=Constraints(min_keep=0.5))
    assert half.keep == {"0": (3, 4, 5), "2": (1, 2, 3, 4)}


def test_widths_are_rounded_in_whole_steps() -> None:
    values = {"0": [0.0, 0.9, 0.1, 0.8, 0.2, 0.7], "2": [0.3, 0.3, 0.3, 0.3, 0.3]}
    plan = planned(values, "units=8", constraints=Constraints(round_to=2))
    # By the mean score of each step: "0" from 6 to 4 (0.05), then "2" from 5 to 4 (0.3).
    assert plan.keep == {"0": (1, 3, 4, 5), "2": (1, 2, 3, 4)}


def test_ignored_layers_stay_whole_and_do_not_count_for_keep() -> None:
    plan = planned(constraints=Constraints(ignore=("0",)))
    assert plan.keep == {"0": tuple(range(6)), "2": (0, 1, 3)}
    plan = planned(budget="units=0.73", constraints=Constraints(ignore=("0",)))
    assert plan.kept_count == 8  # of 11: `units` is a share of all


def test_layers_keep_what_is_asked_for_whatever_the_budget() -> None:
    plan = planned(budget="macs=1.0", constraints=Constraints(keep_layer={"2": 2}))
    assert plan.keep == {"0": tuple(range(6)), "2": (1, 3)}
    plan = planned(budget="keep=0.5", scope=Scope.LAYER, constraints=Constraints(keep_layer={"2": 0.8}))
    assert plan.keep == {"0": (0, 2, 4), "2": (0, 1, 3, 4)}


def test_score_per_cost_prefers_what_frees_more() -> None:
    # A unit of "2" frees 6 + 3 MACs; let one of "0" free 40 + 5.
    structure = mlp().structure
    dear = replace(structure.cost_terms[0], coefficient=40)
    structure = replace(structure, cost_terms=(dear, *structure.cost_terms[1:]))
    values = scores_of({"0": [0.2] * 6, "2": [0.1] * 5})
    by_score = make_plan(structure, values, budget="macs=0.9", rank=Rank.SCORE)
    by_cost = make_plan(structure, values, budget="macs=0.9")
    assert by_cost.rank is Rank.SCORE_PER_COST
    assert (len(by_score.keep["0"]), len(by_score.keep["2"])) == (6, 1)
    assert (len(by_cost.keep["0"]), len(by_cost.keep["2"])) == (5, 5)


def test_below_zero_what_frees_more_goes_first() -> None:
    structure = mlp().structure
    dear = replace(structure.cost_terms[0], coefficient=40)  # a unit of "0" frees 45 MACs, one of "2" 9
    structure = replace(structure, cost_terms=(dear, *structure.cost_terms[1:]))

    def kept(zero: float, two: float) -> tuple[int, int]:
        values = scores_of({"0": [zero] * 6, "2": [two] * 5})
        plan = make_plan(structure, values, budget="units=9", rank=Rank.SCORE_PER_COST)
        return len(plan.keep["0"]), len(plan.keep["2"])

    assert kept(-0.1, -0.1) == (4, 5)
    assert kept(-0.1, -0.3) == (6, 3)  # times what is freed: 1 of each here, so the score decides
    assert kept(0.1, -0.3) == (6, 3)
    assert kept(-0.1, 0.3) == (4, 5)
    assert kept(0.0, 0.1) == (4, 5)


def counted(structure: Structure, plan: Plan, currency: Currency) -> int:
    kept = plan.kept()
    counts = {
        Currency.UNITS: plan.kept_count,
        Currency.MACS: structure.macs(kept),
        Currency.PARAMS: structure.parameter_count(kept),
    }
    return counts[currency]


@given(
    make=st.sampled_from(CASES),
    currency=st.sampled_from(Currency),
    scope=st.sampled_from(Scope),
    rank=st.sampled_from([None, *Rank]),
    percent=st.integers(1, 100),
    seed=st.integers(0, 9),
    constraints=st.builds(Constraints, st.sampled_from([1, 2, 0.3]), st.sampled_from([1, 2])),
)
def test_meets_the_budget_or_says_that_it_cannot(
    make: Callable[[], Case],
    currency: Currency,
    scope: Scope,
    rank: Rank | None,
    percent: int,
    seed: int,
    constraints: Constraints,
) -> None:
    structure = make().structure
    budget = f"{currency.value}={percent}%"
    reach = feasible(structure, budget, constraints)
    scores = drawn(structure, seed)
    options = {"budget": budget, "scope": scope, "rank": rank, "constraints": constraints}
    if not reach.holds_wanted:
        with pytest.raises(BudgetError, match=f"`{budget}` cannot be met"):
            make_plan(structure, scores, **options)
        return
    plan = make_plan(structure, scores, **options)
    plan.check(structure)
    assert plan == make_plan(structure, scores, **options) == Plan.from_json(plan.to_json())
    assert reach.lowest <= counted(structure, plan, currency) <= reach.wanted
    if currency is Currency.UNITS and constraints.round_to == 1:
        assert plan.kept_count == reach.wanted
    for name, units in plan.keep.items():
        width = plan.widths[name]
        assert len(units) == width or len(units) % constraints.round_to == 0
        assert len(units) >= min(width, constraints.min_keep * (1 if constraints.min_keep >= 1 else width))


@given(percent=st.integers(20, 100), seed=st.integers(0, 9), rank=st.sampled_from(Rank))
def test_one_step_less_would_not_meet_it(percent: int, seed: int, rank: Rank) -> None:
    structure = residual().structure
    plan = make_plan(structure, drawn(structure, seed), budget=f"macs={percent}%", rank=rank)
    wanted = feasible(structure, f"macs={percent}%").wanted
    one_more = []
    for name, units in plan.keep.items():
        for unit in set(range(plan.widths[name])) - set(units):
            more = replace(plan, keep={**plan.keep, name: tuple(sorted((*units, unit)))})
            one_more.append(structure.macs(more.kept()))
    assert not one_more or max(one_more) > wanted


def test_the_range_is_named_where_the_budget_cannot_be_met() -> None:
    case = conv_norm()
    reach = feasible(case.structure, "macs=0.01")
    assert not reach.holds_wanted
    message = rf"`macs=0.01` cannot be met: that is {reach.wanted:,} macs.*from {reach.lowest:,} \(\d+.\d %\)"
    with pytest.raises(BudgetError, match=message):
        make_plan(case.structure, drawn(case.structure), budget="macs=0.01")
    assert feasible(case.structure, "macs=0.01", Constraints(ignore=("*",))).lowest == reach.dense


def test_refuses_scores_of_another_network() -> None:
    with pytest.raises(InputError, match=r"The scores do not fit `2` \(5 units\)"):
        planned({"0": [0.0] * 6, "2": [0.0] * 4})
    with pytest.raises(UsageError, match="`half` is no budget"):
        planned(budget="half")


def test_refuses_to_leave_nothing_of_a_tensor() -> None:
    positions = np.arange(2)
    owners = (Owner("a", positions, positions), Owner("b", positions, positions[::-1].copy()))
    tensor = TensorAxes((2,), (Axis(2, owners),), Role.OTHER, True)
    structure = Structure((Group("a", 2, ()), Group("b", 2, ())), (), {"x.w": tensor}, {}, (), ())
    with pytest.raises(BudgetError, match=r"nothing of dimension 0 of `x.w`.*--ignore x`"):
        make_plan(structure, scores_of({"a": [0, 1], "b": [0, 1]}), budget="keep=0.5")


def test_large_networks_are_planned_in_well_under_a_second() -> None:
    width, depth = 256, 400  # 102 400 units
    units = np.arange(width)
    groups = tuple(Group(f"g{i}", width, ()) for i in range(depth))
    axes = [Axis(width, (Owner(group.name, units, units),)) for group in groups]
    columns = np.arange(4 * width)
    flat = [Axis(4 * width, (Owner(group.name, columns, columns // 4),)) for group in groups]
    terms = tuple(CostTerm(f"g{i}", "aten.mm", 9, (axes[i], flat[i - 1])) for i in range(depth))
    structure = Structure(groups, (), {}, {}, (), terms)
    scores = drawn(structure)
    start = time.perf_counter()
    plan = make_plan(structure, scores, budget="macs=0.3")
    assert time.perf_counter() - start < 1
    assert structure.macs(plan.kept()) <= 0.3 * structure.macs({})
