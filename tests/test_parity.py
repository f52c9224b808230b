"""A proof that fails says how far off the smaller model is, and with what weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunecli.budget import make_plan
from prunecli.errors import ProofError
from prunecli.graph.cutting import cut
from prunecli.graph.groups import find_groups
from prunecli.importance import score
from prunecli.parity import verify
from prunecli.surgery import apply_plan
from tests.structures import conv_norm


@pytest.mark.parametrize(
    ("limit", "weights"),
    (
        ("NUMBERS_LIMIT", r"with random weights \(allowed 1e-09\)"),
        ("STRUCTURE_LIMIT", r"with the real weights changed at random \(allowed -1e\+00\)"),
    ),
)
def test_a_failure_names_the_weights_that_it_was_found_with(
    limit: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = conv_norm()
    args, _ = case.batch(2)
    structure = find_groups(case.model, (args[0][:1],))
    plan = make_plan(structure, score(case.model, structure, methods=["random"])["random"], budget="keep=0.5")
    pruned = apply_plan(case.model, structure, plan)
    assert verify(case.model, pruned, structure, plan, args).holds
    monkeypatch.setattr(f"prunecli.parity.{limit}", -1.0)  # which nothing meets
    with pytest.raises(ProofError, match=rf"relative error \S+ {weights}, \S+ with the real ones"):
        verify(case.model, pruned, structure, plan, args)


class Writing(nn.Module):
    """Writes to a parameter, as some code does to bound it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.one.weight.clamp_(-9, 9)
        return self.two(self.one(x).relu())


@pytest.mark.parametrize("model", (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), Writing()))
def test_a_large_model_is_proven_with_weights_that_are_made_at_each_use(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = torch.randn(2, 4)
    structure = find_groups(model.eval(), (example,))
    plan = make_plan(structure, score(model, structure, methods=["random"])["random"], budget="keep=0.5")
    smaller = apply_plan(model, structure, plan)
    held = verify(model, smaller, structure, plan, (example,))
    monkeypatch.setattr("prunecli.parity.HELD_BYTES", 0)
    monkeypatch.setattr("prunecli.graph.other_weights._WORTH_MAKING_ANEW", 0)
    assert verify(model, smaller, structure, plan, (example,)) == held
    monkeypatch.setattr("prunecli.graph.other_weights._AT_ONCE", 8)  # of several blocks
    assert verify(model, smaller, structure, plan, (example,)).holds
    with torch.no_grad():
        next(smaller.parameters()).mul_(1.01)
    with pytest.raises(ProofError, match="not the part of the dense one"):
        verify(model, smaller, structure, plan, (example,))


class Dead(nn.Module):
    """Puts out the same for every sample unless its weights are as large as these."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)
        with torch.no_grad():
            self.one.weight.mul_(1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.two((self.one(x) - 50).relu())


def test_weights_that_make_a_network_dead_prove_nothing() -> None:
    model, example = Dead().eval(), torch.randn(2, 4)
    structure = find_groups(model, (example,))
    plan = make_plan(structure, score(model, structure, methods=["random"])["random"], budget="keep=0.5")
    smaller = apply_plan(model, structure, plan)
    found = verify(model, smaller, structure, plan, (example,))
    assert found.holds
    assert found.notes == (
        "random weights make the outputs the same for every sample: structure checked on the real ones, each "
        "changed at random",
    )


def test_of_a_dead_network_the_smaller_one_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model, example = Dead().eval(), torch.randn(2, 4)
    structure = find_groups(model, (example,))
    plan = make_plan(structure, score(model, structure, methods=["random"])["random"], budget="keep=0.5")
    smaller = apply_plan(model, structure, plan)
    made: list[nn.Module] = []

    def counted(*args: Any) -> nn.Module:
        made.append(cut(*args))
        return made[-1]

    monkeypatch.setattr("prunecli.parity.cut", counted)
    assert verify(model, smaller, structure, plan, (example,)).holds
    assert len(made) == 1
