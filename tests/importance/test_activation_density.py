"""`activation-density` against counting by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunecli.errors import ScoreError
from prunecli.graph.groups import find_groups
from prunecli.importance import score
from tests.structures import Case, conv_norm, residual


def scored(model: nn.Module, inputs: list[Tensor], **options: object) -> dict[str, Tensor]:
    structure = find_groups(model, (inputs[0][:1],))
    batches = [((each,), torch.zeros(len(each), dtype=torch.int64)) for each in inputs]
    found = score(model, structure, batches, methods=["activation-density"], **options)
    return dict(found["activation-density"].by_group)


class Fixed(nn.Module):
    """Three channels of one row each: what comes in, plus nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(3, 3, 1, bias=False), nn.Linear(6, 2)
        self.conv.weight.data = torch.eye(3)[:, :, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().flatten(1))


def test_the_worked_example_counts_two_of_six() -> None:
    outputs = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [0.0, -3.0]]])
    found = scored(Fixed(), [outputs])["conv"]
    assert found.tolist() == [0.5, 0.5, 0.0]
    assert found.mean() == 2 / 6  # the density of the layer
    assert round(3 * float(found.mean())) == 1  # the size it would be given


def test_all_positive_is_one() -> None:
    assert scored(Fixed(), [torch.ones(4, 3, 2)])["conv"].tolist() == [1.0, 1.0, 1.0]


def test_agrees_with_counting_unit_by_unit() -> None:
    case = conv_norm()
    batches = [case.batch(7, seed=1)[0][0], case.batch(3, seed=2)[0][0]]
    found = scored(case.model, batches, micro_batch=4)
    for name, last in (("0", 2), ("3", 5)):
        outputs = case.model[: last + 1](torch.cat(batches))
        for unit, value in enumerate(found[name]):
            assert float(value) == int((outputs[:, unit] > 0).sum()) / outputs[:, unit].numel()


def test_units_that_several_relus_pass_are_counted_at_each() -> None:
    case: Case = residual()
    (inputs,), _ = case.batch(5)
    seen: list[Tensor] = []
    relu = Tensor.relu

    def watching(x: Tensor) -> Tensor:
        seen.append(relu(x))
        return seen[-1]

    found = scored(case.model, [inputs])["stem"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "relu", watching)
        case.model(inputs)
    on_stage = torch.cat([each for each in seen if each.shape[1] == 6])
    assert len(on_stage) == 15
    torch.testing.assert_close(found, (on_stage > 0).double().mean((0, 2, 3)), rtol=1e-15, atol=0)


def test_units_without_a_relu_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(ScoreError, match="`0`, which passes no ReLU"):
        scored(model, [torch.ones(2, 3)])
