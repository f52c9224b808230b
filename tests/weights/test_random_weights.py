"""`random` for weights is fixed by the seed and the name."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import nn

from prunecli.weights import WeightBudget, choose_masks
from tests.weights.lent import bias_free, lend, scored

EXAMPLE = torch.zeros(1, 20, dtype=torch.float64)


def test_numbers_depend_on_the_seed_and_the_name_alone() -> None:
    model = bias_free(20, 30, 10)
    first = scored(model, EXAMPLE, "random", seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    again, other = scored(model, EXAMPLE, "random", seed=3), scored(model, EXAMPLE, "random", seed=4)
    alone = scored(nn.Sequential(model[0]), EXAMPLE, "random", seed=3)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(alone["0.weight"], first["0.weight"])


def test_numbers_are_uniform_and_the_ratio_is_exact() -> None:
    model = bias_free(20, 300, 10)
    scores = torch.cat([each.flatten() for each in scored(model, EXAMPLE, "random").values()])
    assert 0 <= scores.min() < 0.01 < 0.99 < scores.max() < 1
    assert abs(float(scores.mean()) - 0.5) < 0.02
    masking = choose_masks(lend(model, EXAMPLE, "random"), WeightBudget(Fraction(9)))
    assert (masking.kept, masking.parameters) == (1000, 9000)
