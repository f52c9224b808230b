"""`lamp`: a weight's share among those of its layer that are not smaller."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prunecli.weights import WeightBudget, choose_masks
from prunecli.weights.lamp import shares_of_the_rest
from tests.weights.lent import bias_free, lend, scored


def slowly(weights: list[float]) -> list[float]:
    """Return the scores as the paper writes them: of equals, the first comes first."""
    order = sorted(range(len(weights)), key=lambda index: weights[index] ** 2)
    rank = {index: place for place, index in enumerate(order)}
    return [
        w**2 / sum(weights[other] ** 2 for other in order[rank[index] :]) if any(weights) else 0.0
        for index, w in enumerate(weights)
    ]


def test_the_worked_example() -> None:
    assert slowly([3, 1, 2]) == pytest.approx([1, 1 / 14, 4 / 13])
    assert shares_of_the_rest(torch.tensor([[3.0, -1.0, 2.0]]))[0].tolist() == pytest.approx(
        [1, 1 / 14, 4 / 13]
    )


@given(st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12))
def test_agrees_with_the_paper_under_ties(weights: list[float]) -> None:
    assert shares_of_the_rest(torch.tensor(weights)).tolist() == pytest.approx(slowly(weights), rel=1e-12)


@pytest.mark.parametrize("scale", (1e-20, 1.0, 1e20))
def test_the_top_score_of_two_million_weights_is_exactly_one(scale: float) -> None:
    weights = torch.randn(2_000_000, generator=torch.Generator().manual_seed(0)) * scale
    scores = shares_of_the_rest(weights)
    assert scores.max().item() == 1.0
    assert scores.argmax() == weights.abs().argmax()
    assert int((scores == 1).sum()) == 1
    by_size = weights.abs().argsort(stable=True)
    assert bool((scores[by_size].diff() >= 0).all())


def test_a_layer_of_zeros_scores_zero() -> None:
    assert shares_of_the_rest(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    assert shares_of_the_rest(torch.tensor([0.0, 2.0])).tolist() == [0.0, 1.0]


def test_no_layer_is_emptied_while_there_is_a_weight_for_each() -> None:
    model = bias_free(40, 50, 60, 10)
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    example = torch.zeros(1, 40, dtype=torch.float64)
    masking = choose_masks(lend(model, example, "lamp"), WeightBudget(Fraction(5600, 3)))
    assert [int(mask.sum()) for mask in masking.masks.values()] == [1, 1, 1]
    for name, weight in model.named_parameters():
        assert torch.equal(masking.masks[name], weight.abs() == weight.abs().max())


def test_a_masked_weight_counts_for_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    model[0].weight.data = torch.tensor([[3.0, 0.0, 2.0]])
    assert scored(model, torch.zeros(1, 3), "lamp")["0.weight"][0].tolist() == pytest.approx([1, 0, 4 / 13])
