"""`fisher` against plain loops over samples and draws, and what it cannot take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunecli.errors import ScoreError
from prunecli.graph.groups import find_groups
from prunecli.importance import score


def net(outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double().eval()


def test_one_output_is_no_choice() -> None:
    model, inputs = net(1), torch.randn(6, 4, dtype=torch.float64)
    with pytest.raises(ScoreError, match="one output is no choice between answers. Use `taylor-fo`"):
        score(model, find_groups(model, (inputs[:1],)), [((inputs,), None)], methods=["fisher"])


def test_no_labels_are_looked_at() -> None:
    model, inputs = net(3), torch.randn(6, 4, dtype=torch.float64)
    structure = find_groups(model, (inputs[:1],))
    one, other = (
        score(model, structure, [((inputs,), targets)], methods=["fisher"])["fisher"].by_group["0"]
        for targets in (None, torch.zeros(6))
    )
    assert torch.equal(one, other)


def test_many_draws_come_near_the_expectation() -> None:
    model, inputs = net(3), torch.randn(4, 4, dtype=torch.float64)
    found = score(
        model, find_groups(model, (inputs[:1],)), [((inputs,), None)], methods=["fisher"],
        method_args={"draws": 4000, "temperature": 2.0},
    )["fisher"].by_group["0"]  # fmt: skip
    expected = torch.zeros(5, dtype=torch.float64)
    for sample in inputs:
        gate = torch.ones(5, dtype=torch.float64, requires_grad=True)
        logs = (model[2](model[1](model[0](sample) * gate)) / 2).log_softmax(0)
        for log in logs:
            (gradient,) = torch.autograd.grad(log, gate, retain_graph=True)
            expected += log.exp().item() * gradient.square() / len(inputs)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=1e-6)
