"""`magnitude` for weights: the largest stay."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from prunecli.plan import Scope
from prunecli.weights import Selection, WeightBudget, choose_masks
from tests.weights.lent import lend, scored


def test_the_largest_stay_whatever_their_sign() -> None:
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    model[0].weight.data = torch.tensor([[3.0, -1.0, 2.0]])
    lender = lend(model, torch.zeros(1, 3), "magnitude")
    assert scored(model, torch.zeros(1, 3), "magnitude")["0.weight"].tolist() == [[3.0, 1.0, 2.0]]
    masks = choose_masks(lender, WeightBudget(Fraction(3, 2))).masks
    assert masks["0.weight"].tolist() == [[True, False, True]]


@pytest.mark.parametrize(("scope", "collapsed"), ((Scope.GLOBAL, ("1.weight",)), (Scope.LAYER, ())))
def test_a_global_ranking_empties_a_layer_of_small_weights(scope: Scope, collapsed: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 400), nn.Linear(400, 400), nn.Linear(400, 2))
    lender = lend(model, torch.zeros(1, 4), "magnitude", with_classifier=False)
    masking = choose_masks(lender, WeightBudget(Fraction(90)), Selection(scope))
    assert masking.collapsed == collapsed
    assert masking.kept == masking.count == round(masking.parameters / 90 - (masking.parameters - 161_600))
