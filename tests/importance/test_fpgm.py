"""`fpgm` against a twin with plain loops, what it is for, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest
import torch
from torch import nn

from prunecli.errors import ScoreError
from prunecli.graph.structure import Group, Member, Role, Side
from prunecli.importance import score
from tests.importance.test_taylor_fo_weight import MADE_BY
from tests.structures import Case, conv_norm, layer, member, mlp, residual, structure_of


def twin(case: Case) -> dict[str, list[float]]:
    """Return, for each unit, the sum over all others of sqrt(sum of (w - v)^2) over their weights."""
    scores = {}
    for name, layers in MADE_BY[case.name].items():
        weights = [case.model.get_parameter(f"{one}.weight").detach() for one in layers]
        units = [
            [float(w) for weight in weights for w in weight[unit].flatten()]
            for unit in range(case.structure.by_name[name].width)
        ]
        scores[name] = [
            sum(sqrt(sum((w - v) ** 2 for w, v in zip(one, other, strict=True))) for other in units)
            for one in units
        ]
    return scores


@pytest.mark.parametrize("make", (mlp, conv_norm, residual))
@pytest.mark.parametrize("block", (1, 7, 30, 2**22))
def test_agrees_with_plain_loops(
    make: Callable[[], Case], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunecli.importance.fpgm._BLOCK", block)  # however it is cut into blocks
    case = make()
    found = score(case.model, case.structure, methods=["fpgm"])["fpgm"].by_group
    for name, values in twin(case).items():
        assert found[name].tolist() == pytest.approx(values, rel=1e-12)


def linear(weight: torch.Tensor) -> tuple[nn.Module, Group]:
    """Return one linear layer with these weights, and the group of its units."""
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0])).to(weight.dtype)
    with torch.no_grad():
        model[0].weight.copy_(weight)
    return model, Group("0", len(weight), tuple(layer("0", len(weight), gated=True)))


def test_solved_by_hand() -> None:
    model, group = linear(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]], dtype=torch.float64))
    found = score(model, structure_of(model, [group]), methods=["fpgm"])["fpgm"].by_group["0"]
    assert found.tolist() == [15, 10, 15]  # the one between the others goes first, not the smallest


@pytest.mark.parametrize("width", (5, 60))
def test_moving_all_units_alike_changes_nothing(width: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(width, 8, dtype=torch.float64)
    weight[1] = weight[0]
    found = []
    for shift in (0.0, 10.0):
        model, group = linear(weight + shift)
        found.append(score(model, structure_of(model, [group]), methods=["fpgm"])["fpgm"].by_group["0"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-7, atol=0)
    torch.testing.assert_close(found[0][1], found[0][0], rtol=1e-9, atol=0)


def test_units_of_several_positions_are_compared_as_wholes() -> None:
    model, _ = linear(torch.tensor([[1.0, 2.0], [5.0, 6.0], [3.0, 4.0], [8.0, 10.0]], dtype=torch.float64))
    mixed = Member(
        "0.weight", 0, np.array([0, 2, 1, 3]), np.array([0, 0, 1, 1]), Role.WEIGHT, Side.PRODUCER, False
    )
    found = score(model, structure_of(model, [Group("0", 2, (mixed,))]), methods=["fpgm"])["fpgm"]
    assert found.by_group["0"].tolist() == pytest.approx([sqrt(4**2 + 4**2 + 5**2 + 6**2)] * 2, rel=1e-12)


def test_refuses_units_that_no_weight_makes() -> None:
    case = mlp()
    lone = Group("lone", 6, (member("0.bias", 0, "other", "producer", 6),))
    with pytest.raises(ScoreError, match="`fpgm` cannot score `lone`, which has no weights"):
        score(case.model, structure_of(case.model, [lone]), methods=["fpgm"])
