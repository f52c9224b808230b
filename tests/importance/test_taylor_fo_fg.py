"""`taylor-fo-fg` against a loop over samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunecli.graph.groups import find_groups
from prunecli.importance import Scores, score
from tests.importance.gated import Setting, gate_gradients
from tests.structures import Case, conv_norm, mlp, residual


def scored(case: Case, samples: int, micro_batch: int, method: str = "taylor-fo-fg") -> Scores:
    batches = [case.batch(samples)]
    return score(case.model, case.structure, batches, cross_entropy, [method], micro_batch=micro_batch)[
        method
    ]


def one_by_one(case: Case, samples: int) -> dict[str, torch.Tensor]:
    """Square the gate's gradient of each sample by itself, and take the mean."""
    (inputs,), targets = case.batch(samples)
    where = Setting(case.model, case.structure, (inputs,))
    total = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in case.structure.groups}
    for sample in range(samples):
        label = targets[sample : sample + 1]
        found = gate_gradients(
            where, (inputs[sample : sample + 1],), lambda output, _, label=label: cross_entropy(output, label)
        )
        for name, gradient in found.items():
            total[name] += gradient.square() / samples
    return total


@pytest.mark.parametrize("make", (mlp, conv_norm, residual))
@pytest.mark.parametrize("micro_batch", (1, 4, 7, 64))  # of 7 samples: 4 leaves a last one of 3
def test_agrees_with_a_loop_over_samples(make: Callable[[], Case], micro_batch: int) -> None:
    case = make()
    found = scored(case, 7, micro_batch).by_group
    for name, expected in one_by_one(make(), 7).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("make", (mlp, conv_norm, residual))
def test_is_never_below_the_square_of_the_mean(make: Callable[[], Case]) -> None:
    case = make()
    each, mean = scored(case, 8, 8).by_group, scored(case, 8, 8, "taylor-fo").by_group
    for name, values in each.items():
        assert (values >= mean[name] * (1 - 1e-9)).all()


def test_is_taylor_fo_of_micro_batches_of_one() -> None:
    case = residual()
    each, single = scored(case, 5, 5).by_group, scored(case, 5, 1, "taylor-fo").by_group
    for name, values in each.items():
        torch.testing.assert_close(values, single[name], rtol=1e-9, atol=1e-18)


def test_opposite_signs_do_not_cancel() -> None:
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    inputs = torch.tensor([[2.0], [-2.0]], dtype=torch.float64)
    structure = find_groups(model, (inputs[:1],))
    found = score(
        model, structure, [(inputs, torch.zeros(2))], lambda output, _: output.mean(),
        ["taylor-fo-fg", "taylor-fo"],
    )  # fmt: skip
    assert found["taylor-fo-fg"].by_group["0"].tolist() == [4, 4]
    assert found["taylor-fo"].by_group["0"].tolist() == [0, 0]
