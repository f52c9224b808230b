"""A model that is lent out comes back as it was; the laws test it with every method."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunecli.importance.undisturbed import ScoreBN, require_gradients, undisturbed


class Restless(nn.Module):
    """A module that changes all it can reach in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("swapped", torch.tensor([torch.nan]))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.swapped = torch.ones(5)
        self.seen.append(1)
        self.cache = self.late = nn.Linear(1, 1)
        self.register_forward_hook(lambda *_: None)
        return self.norm(self.layer(x))


@pytest.mark.parametrize("score_bn", tuple(ScoreBN))
def test_what_forward_changes_is_undone(score_bn: ScoreBN) -> None:
    model = Restless()
    state, swapped = {k: v.clone() for k, v in model.state_dict().items()}, model.swapped
    attributes = set(vars(model))
    with pytest.raises(ZeroDivisionError):
        fail_inside(model, score_bn)
    assert model.swapped is swapped
    assert model.training
    assert model.norm.training
    assert set(vars(model)) == attributes
    assert (model.seen, len(model._forward_hooks), set(model._modules)) == ([], 0, {"layer", "norm"})
    del state["swapped"]  # nan, which equals nothing
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def fail_inside(model: Restless, score_bn: ScoreBN) -> None:
    with undisturbed(model, score_bn, seed=0):
        assert model.norm.training is (score_bn is ScoreBN.TRAIN)
        assert not model.training
        model(torch.randn(4, 2))
        raise ZeroDivisionError


def test_random_numbers_are_seeded_inside_and_go_on_outside() -> None:
    def draws() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), np.random.rand()

    def lend(seed: int) -> tuple[float, float, float]:
        with undisturbed(nn.Identity(), ScoreBN.EVAL, seed):
            return draws()

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    expected = draws()
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])
    assert lend(1) == lend(1) != lend(2)
    assert draws() == expected


def test_gradients_are_on_even_where_the_caller_has_switched_them_off() -> None:
    model = nn.Linear(2, 2)
    with torch.inference_mode(), undisturbed(model, ScoreBN.EVAL, seed=0):
        require_gradients(model, [model.weight])
        assert model(torch.ones(1, 2)).requires_grad
        assert not model.bias.requires_grad
    assert model.bias.requires_grad
