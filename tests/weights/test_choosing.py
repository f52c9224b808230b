"""Masks keep exactly as many weights as they should, and the right ones."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunecli.errors import BudgetError, UsageError
from prunecli.plan import Scope
from prunecli.weights import MaskRule, RatioBase, Selection, WeightBudget

ALL = torch.tensor([1.0, 1, 1, 1])


def kept(masks: dict[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


def total(masks: dict[str, Tensor]) -> int:
    return sum(kept(masks).values())


# Budgets


@pytest.mark.parametrize(
    ("ratio", "keep", "expected"),
    (("32", None, 32), ("1", None, 1), ("2.5", None, "5/2"), (None, "0.1", 10), (None, "10%", 10)),
)
def test_ratios_and_shares_are_read(ratio: str | None, keep: str | None, expected: int | str) -> None:
    assert WeightBudget.parse(ratio, keep).ratio == Fraction(expected)


@pytest.mark.parametrize(
    ("ratio", "keep", "match"),
    (
        (None, None, "Say how many weights may stay"),
        ("0.5", None, "`--ratio 0.5`: a compression ratio is a number from 1 on"),
        ("50%", None, "`--ratio 50%`: a compression ratio"),
        ("many", None, "`--ratio many`: a compression ratio"),
        ("1e400", None, "`--ratio 1e400`: a compression ratio"),
        (None, "1e-400", "`--keep 1e-400`: the share"),
        (None, "0", "`--keep 0`: the share of weights to keep is above 0 and at most 1"),
        (None, "1.5", "`--keep 1.5`: the share"),
    ),
)
def test_other_budgets_are_refused(ratio: str | None, keep: str | None, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        WeightBudget.parse(ratio, keep)


def test_what_cannot_be_pruned_is_made_up_for_by_the_rest() -> None:
    # kappa = (n / r - others) / prunable: 110 / 4 - 10 = 17.5 of 100 weights stay.
    assert WeightBudget(Fraction(4)).count(100, 10) == 18
    assert WeightBudget(Fraction(4), RatioBase.PRUNABLE).count(100, 10) == 25


@given(st.integers(1, 10**7), st.integers(0, 10**5), st.fractions(1, 100))
def test_the_empirical_ratio_is_the_one_asked_for_to_one_weight(
    prunable: int, others: int, ratio: Fraction
) -> None:
    try:
        count = WeightBudget(ratio).count(prunable, others)
    except BudgetError:
        assert (prunable + others) / ratio - others < Fraction(1, 2)
        return
    assert abs((prunable + others) / ratio - (count + others)) <= Fraction(1, 2)
    assert 0 < count <= prunable


def test_a_ratio_that_others_alone_exceed_is_refused() -> None:
    with pytest.raises(
        BudgetError, match=r"ratio of 16 leaves nothing to 100 .* 10 parameters .* Below 11 it"
    ):
        WeightBudget(Fraction(16)).count(100, 10)


@pytest.mark.parametrize("base", RatioBase)
def test_a_ratio_that_leaves_less_than_a_weight_is_refused(base: RatioBase) -> None:
    with pytest.raises(BudgetError, match="ratio of 300 leaves nothing to 100 prunable weights; at most 200"):
        WeightBudget(Fraction(300), base).count(100, 0)


# Which weights stay


def test_of_equals_the_first_go() -> None:
    masks = Selection().masks({"a": ALL, "b": ALL}, 3)
    assert masks["a"].tolist() == [False] * 4
    assert masks["b"].tolist() == [False, True, True, True]


def test_the_largest_stay() -> None:
    assert Selection().masks({"a": torch.tensor([3.0, 1, 2])}, 2)["a"].tolist() == [True, False, True]


SCORES = st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=9), min_size=1, max_size=4)


def tensors(layers: list[list[int]]) -> dict[str, Tensor]:
    return {str(number): torch.tensor(layer, dtype=torch.float64) for number, layer in enumerate(layers)}


@given(SCORES, st.integers(0, 40), st.sampled_from(Scope))
def test_exactly_so_many_stay_under_ties(layers: list[list[int]], count: int, scope: Scope) -> None:
    scores = tensors(layers)
    most = sum(map(len, layers))
    assert total(Selection(scope).masks(scores, count)) == min(count, most)


@given(SCORES, st.integers(0, 40))
def test_who_goes_is_a_stable_sort(layers: list[list[int]], count: int) -> None:
    flat = [score for layer in layers for score in layer]
    stays = sorted(sorted(range(len(flat)), key=lambda index: flat[index])[max(0, len(flat) - count) :])
    masks = torch.cat(list(Selection().masks(tensors(layers), count).values()))
    assert masks.nonzero().flatten().tolist() == stays


@given(SCORES, st.integers(0, 40), st.integers(0, 40), st.sampled_from(Scope))
def test_with_fewer_no_other_weight_comes_in(
    layers: list[list[int]], one: int, other: int, scope: Scope
) -> None:
    # By layer, the layers' shares must not turn round either: largest remainders may, so global alone there.
    few, many = sorted((one, other))
    scores = tensors(layers) if scope is Scope.GLOBAL else tensors(layers[:1])
    less, more = (Selection(scope).masks(scores, count) for count in (few, many))
    assert all(bool((more[name] | ~less[name]).all()) for name in scores)


@given(SCORES, st.data(), st.sampled_from(Scope))
def test_what_is_masked_stays_so_and_is_made_up_for(
    layers: list[list[int]], data: st.DataObject, scope: Scope
) -> None:
    scores = tensors(layers)
    there = {
        name: torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(each), max_size=len(each))))
        for name, each in scores.items()
    }
    count = data.draw(st.integers(0, 40))
    masks = Selection(scope).masks(scores, count, there)
    assert total(masks) == min(count, total(there))
    assert not any(bool((mask & ~there[name]).any()) for name, mask in masks.items())


# Layer by layer


def test_layers_get_the_same_share_the_largest_remainders_first() -> None:
    scores = {"a": torch.arange(10.0), "b": torch.arange(7.0), "c": torch.arange(3.0)}
    # 9 of 20: 4.5, 3.15 and 1.35, so the one that is missing goes to a.
    assert kept(Selection(Scope.LAYER).masks(scores, 9)) == {"a": 5, "b": 3, "c": 1}


def test_a_layer_that_has_too_few_left_leaves_its_share_to_the_others() -> None:
    scores = {"a": torch.arange(10.0), "b": torch.arange(10.0)}
    there = {"a": torch.arange(10) < 2, "b": torch.ones(10, dtype=torch.bool)}
    assert kept(Selection(Scope.LAYER).masks(scores, 10, there)) == {"a": 2, "b": 8}


# What else must stay


@pytest.mark.parametrize("scope", Scope)
def test_every_layer_keeps_its_least_and_the_sum_is_exact(scope: Scope) -> None:
    scores = {"a": torch.arange(10.0), "b": torch.arange(100.0) + 100, "c": torch.arange(40.0) - 50}
    assert kept(Selection(scope, min_keep=3).masks(scores, 9)) == {"a": 3, "b": 3, "c": 3}
    masks = Selection(scope, min_keep=0.1).masks(scores, 30)
    assert total(masks) == 30
    assert all(kept(masks)[name] >= least for name, least in {"a": 1, "b": 10, "c": 4}.items())
    assert masks["c"].nonzero().min() == 40 - kept(masks)["c"]  # its best


@given(SCORES, st.integers(0, 40), st.integers(0, 5), st.sampled_from(Scope))
def test_the_least_is_kept_where_it_can_be(
    layers: list[list[int]], count: int, least: int, scope: Scope
) -> None:
    scores = tensors(layers)
    must = sum(min(least, len(layer)) for layer in layers)
    if must > count:
        with pytest.raises(BudgetError, match=f"keep {must} weights, and the budget only {count}"):
            Selection(scope, min_keep=least).masks(scores, count)
        return
    masks = Selection(scope, min_keep=least).masks(scores, count)
    assert total(masks) == min(count, sum(map(len, layers)))
    assert all(each >= min(least, len(scores[name])) for name, each in kept(masks).items())


@pytest.mark.parametrize("scope", Scope)
def test_named_layers_keep_what_is_said(scope: Scope) -> None:
    scores = {"a.weight": ALL, "b.weight": ALL * 9, "c.weight": ALL * 2}
    selection = Selection(scope, keep_layer={"a": 1.0, "b.*": 1})
    assert kept(selection.masks(scores, 7)) == {"a.weight": 4, "b.weight": 1, "c.weight": 2}


def test_a_pattern_that_names_no_layer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`--keep-layer d\*`: no prunable layer has such a name"):
        Selection(keep_layer={"d*": 1}).masks({"a": ALL}, 2)


def test_more_than_the_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match="keep 6 weights, and the budget only 5"):
        Selection(min_keep=2, keep_layer={"a": 4}).masks({"a": ALL, "b": ALL}, 5)


# The two-sided rule


@pytest.mark.parametrize(("ratio", "empirical"), ((4, 2.0), (8, 4.0), (16, 8.1), (32, 16.3), (64, 32.4)))
def test_two_sided_halves_the_compression_of_symmetric_scores(ratio: int, empirical: float) -> None:
    scores = torch.randn(300_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masks = Selection(rule=MaskRule.TWO_SIDED).masks({"a": scores}, round(len(scores) / ratio))
    assert len(scores) / total(masks) == pytest.approx(empirical, rel=0.025)
    assert total(Selection().masks({"a": scores}, round(len(scores) / ratio))) == round(len(scores) / ratio)


@pytest.mark.parametrize("scope", Scope)
def test_two_sided_does_no_harm_to_scores_above_zero(scope: Scope) -> None:
    scores = {"a": torch.arange(1.0, 101), "b": torch.arange(101.0, 201)}
    counts = {Scope.GLOBAL: {"a": 0, "b": 50}, Scope.LAYER: {"a": 25, "b": 25}}[scope]
    assert kept(Selection(scope, MaskRule.TWO_SIDED).masks(scores, 50)) == counts


def test_two_sided_keeps_all_where_the_threshold_is_not_above_zero() -> None:
    scores = torch.tensor([0.0] * 8 + [1.0, 2.0])
    assert total(Selection(rule=MaskRule.TWO_SIDED).masks({"a": scores}, 3)) == 10
    assert total(Selection(rule=MaskRule.TWO_SIDED).masks({"a": -scores}, 3)) == 10


def test_two_sided_counts_what_is_masked_as_gone() -> None:
    scores = torch.arange(1.0, 101)
    masks = Selection(rule=MaskRule.TWO_SIDED).masks({"a": scores}, 20, {"a": scores > 50})
    assert masks["a"].nonzero().flatten().tolist() == list(range(80, 100))


def test_two_sided_keeps_no_least() -> None:
    with pytest.raises(UsageError, match="two-sided` is a threshold, which keeps no least number"):
        Selection(rule=MaskRule.TWO_SIDED, min_keep=1).masks({"a": ALL}, 2)
