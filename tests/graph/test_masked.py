"""The masked dense model: what it holds on to while it runs."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from prunecli.budget import make_plan
from prunecli.graph.groups import find_groups
from prunecli.graph.masked import run_masked
from prunecli.importance import score

ALIVE: list[bool] = []


class Looking(nn.Module):
    """Looks at an activation from another side, and asks later whether that is still there."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.one(x)
        seen = weakref.ref(hidden)
        hidden = hidden.t().relu().t()
        ALIVE.append(seen() is not None)
        return self.two(hidden)


def test_a_masked_run_keeps_no_activation_alive() -> None:
    model, example = Looking().eval(), torch.randn(2, 4)
    structure = find_groups(model, (example,))
    plan = make_plan(structure, score(model, structure, methods=["random"])["random"], budget="keep=0.5")
    ALIVE.clear()
    run_masked(model, structure, plan.kept(), (example,), {})
    assert ALIVE == [False]
