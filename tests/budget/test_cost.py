"""The cost model in arrays against Structure, which counts one plan at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.budget.amounts import Currency
from prunecli.budget.cost import StepCosts, cost_model
from prunecli.graph.structure import Axis, CostTerm, Group, Kept, Owner, Structure
from tests.structures import CASES, Case, residual


def counted(structure: Structure, currency: Currency, kept: Kept) -> int:
    match currency:
        case Currency.UNITS:
            return sum(int(kept[group.name].sum()) for group in structure.groups)
        case Currency.MACS:
            return structure.macs(kept)
        case Currency.PARAMS:
            return structure.parameter_count(kept)


EVERY_CURRENCY = pytest.mark.parametrize("currency", tuple(Currency))


@EVERY_CURRENCY
@pytest.mark.parametrize("make", CASES)
def test_dense_cost(make: Callable[[], Case], currency: Currency) -> None:
    structure = make().structure
    model = cost_model(structure, currency)
    whole = {group.name: np.ones(group.width, dtype=bool) for group in structure.groups}
    assert model.at(model.lengths) == counted(structure, currency, whole)


@EVERY_CURRENCY
def test_what_each_unit_frees_alone(currency: Currency) -> None:
    structure = residual().structure
    model = cost_model(structure, currency)
    whole = {group.name: np.ones(group.width, dtype=bool) for group in structure.groups}
    for name, freed in model.freed_by_unit().items():
        for unit, amount in enumerate(freed):
            without = {**whole, name: np.arange(len(freed)) != unit}
            assert counted(structure, currency, whole) - counted(structure, currency, without) == amount


@EVERY_CURRENCY
@given(data=st.data())
def test_cost_step_by_step(currency: Currency, data: st.DataObject) -> None:
    structure = residual().structure
    order = data.draw(st.permutations(range(structure.unit_count)))
    splits = np.cumsum([group.width for group in structure.groups])[:-1]
    parts = np.split(np.array(order), splits)
    ranks = {group.name: part for group, part in zip(structure.groups, parts, strict=True)}
    costs = StepCosts(cost_model(structure, currency), ranks)
    for steps in range(structure.unit_count + 1):
        kept = {name: part >= steps for name, part in ranks.items()}
        assert costs.after(steps) == counted(structure, currency, kept)


def heads() -> Structure:
    """Return 12 channels, each owned by one of 3 heads and by one of 4 places within the head."""
    positions = np.arange(12)
    owners = (Owner("head", positions, positions // 4), Owner("place", positions, positions % 4))
    axis = Axis(12, owners)
    groups = (Group("head", 3, ()), Group("place", 4, ()))
    terms = (CostTerm("q", "aten.mm", 5, (axis,)), CostTerm("s", "aten.bmm", 1, (axis, axis)))
    return Structure(groups, (), {}, {}, (), terms)


def test_a_position_with_two_owners_goes_with_the_first() -> None:
    structure = heads()
    model = cost_model(structure, Currency.MACS)
    freed = model.freed_by_unit()
    assert len(model.axes) == 1
    assert freed["head"].tolist() == [5 * 4 + 144 - 64] * 3
    assert freed["place"].tolist() == [5 * 3 + 144 - 81] * 4
    costs = StepCosts(model, {"head": np.array([9, 0, 9]), "place": np.array([1, 9, 9, 2])})
    assert [costs.after(steps) for steps in range(4)] == [5 * n + n * n for n in (12, 8, 6, 4)]
