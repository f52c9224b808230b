"""Which module is to blame for NaN and infinity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunecli.graph.not_finite import where_not_finite


class Applied(nn.Module):
    """Applies a function to what a layer puts out, in code of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function, self.after = nn.Linear(2, 2), function, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.layer(x)))


def chain(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), module, nn.ReLU())


@pytest.mark.parametrize(
    ("model", "expected"),
    (
        (chain(Applied(lambda x: x / 0 * 0)), " `1` (Applied) is the first to put out NaN."),
        (chain(Applied(lambda x: x.abs() / 0)), " `1` (Applied) is the first to put out infinity."),
        (Applied(lambda x: x * torch.nan), " The model's own forward (Applied) is the first to put out NaN."),
        (chain(nn.Identity()), ""),
    ),
)
def test_the_innermost_module_that_starts_it_is_named(model: nn.Module, expected: str) -> None:
    assert where_not_finite(model, (torch.ones(3, 2),)) == expected
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_with_broken_weights_is_named() -> None:
    model = chain(nn.Linear(2, 2))
    model[1].weight.data[0, 0] = torch.inf  # type: ignore[index, union-attr]
    assert where_not_finite(model, (torch.ones(3, 2),)) == " `1` (Linear) is the first to put out infinity."


def test_inputs_that_are_not_finite_are_to_blame_themselves() -> None:
    assert where_not_finite(nn.Linear(2, 2), (torch.full((1, 2), torch.nan),)) == (
        " The inputs hold NaN or infinity themselves."
    )


def test_what_fails_altogether_is_nobodys_fault_here() -> None:
    model = nn.Linear(2, 2)
    assert where_not_finite(model, (torch.ones(1, 3),)) == ""
    assert not model._forward_hooks
