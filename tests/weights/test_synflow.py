"""`synflow`: what flows is conserved, float64 is needed, and the schedule empties no layer."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cifar.resnet import ResNet
from prunecli.errors import ScoreError, UsageError
from prunecli.graph.groups import find_groups
from prunecli.importance import ScoreBN
from prunecli.weights import Lender, WeightBudget, choose_masks, score_weights
from tests.weights.lent import bias_free, lend, scored, vgg

IMAGE = torch.zeros(1, 3, 32, 32)


def flow(model: nn.Module, example: Tensor) -> Tensor:
    """Return what ones become, plainly: with every parameter set to its absolute value in place."""
    for parameter in model.parameters():
        parameter.data.abs_()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith((".bias", "running_mean")):
            tensor.data.zero_()
    return model.eval()(torch.ones_like(example)).sum()


def test_the_worked_example() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    model[2].weight.data = torch.tensor([[-1.0, 2.0]])
    scores = scored(model, torch.zeros(1, 2), "synflow")
    assert scores["0.weight"].tolist() == [[1, 2], [6, 0]]
    assert scores["2.weight"].tolist() == [[3, 6]]
    assert {float(each.sum()) for each in scores.values()} == {9.0}


@pytest.mark.parametrize("bias", (False, True))
def test_agrees_with_autograd_on_the_absolute_network(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2, bias=bias)
    ).double()
    for tensor in (model[1].weight.data, model[1].bias.data, model[1].running_mean):
        tensor.normal_()
    model[1].running_var.uniform_(0.5, 2)
    example = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    scores = scored(model, example, "synflow", score_bn=ScoreBN.TRAIN)  # in eval mode whatever is asked for
    weights = {name: each for name, each in model.named_parameters() if name in scores}
    assert list(weights) == ["0.weight", "4.weight"]
    gradients = torch.autograd.grad(flow(model, example), list(weights.values()))
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        torch.testing.assert_close(scores[name], weight.detach() * gradient)


def test_the_same_flows_through_each_layer() -> None:
    model = bias_free(6, 9, 7, 8, 3)
    example = torch.zeros(1, 6, dtype=torch.float64)
    scores = scored(model, example, "synflow")
    expected = flow(model, example).item()
    assert [float(each.sum()) for each in scores.values()] == pytest.approx([expected] * 4, rel=1e-12)
    layers = list(scores.values())
    for before, after in zip(layers, layers[1:], strict=False):  # and in and out of each unit
        torch.testing.assert_close(before.sum(1), after.sum(0))


def test_the_same_flows_through_each_convolution() -> None:
    model = vgg(16)
    scores = scored(model, IMAGE, "synflow")
    expected = flow(model.double(), IMAGE.double()).item()
    assert [float(each.sum()) for each in scores.values()] == pytest.approx([expected] * 14, rel=1e-9)


def test_biases_are_no_part_of_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    before = scored(model, torch.zeros(1, 4), "synflow")
    model[0].bias.data.fill_(7.0), model[2].bias.data.fill_(-7.0)
    after = scored(model, torch.zeros(1, 4), "synflow")
    assert all(torch.equal(before[name], after[name]) for name in before)
    sums = [float(each.sum()) for each in after.values()]
    assert sums[0] == pytest.approx(sums[1], rel=1e-12)


def test_a_deep_network_needs_float64() -> None:
    torch.manual_seed(42)
    model = ResNet(9).eval()
    scores = scored(model, IMAGE, "synflow")
    assert all(bool(each.isfinite().all()) for each in scores.values())
    assert sum(float(each.sum()) for each in scores.values()) > 1e50
    assert flow(model, IMAGE).item() == float("inf")  # in float32


def masked(model: nn.Module, ratio: int, **arguments: Any) -> Any:
    lender = lend(model, IMAGE, "synflow", arguments=arguments, with_classifier=False)
    return choose_masks(lender, WeightBudget(Fraction(ratio)))


def test_one_step_empties_layers_that_thirty_do_not() -> None:
    model = vgg(4)
    once = masked(model, 32, steps=1)
    assert len(once.collapsed) == 6
    assert "1 steps may empty layers that 30 or more would not" in once.about.notes[0]
    often = masked(model, 32, steps=30)
    assert (often.collapsed, often.about.notes, often.kept) == ((), (), once.kept)


@pytest.mark.slow
def test_vgg_16_at_full_width() -> None:
    model = vgg()
    assert len(masked(model, 32, steps=1).collapsed) == 6
    often = masked(model, 32, steps=30)
    assert often.collapsed == ()
    assert min(int(mask.sum()) for mask in often.masks.values()) > 1600


def test_masked_weights_pass_nothing_on() -> None:
    model = bias_free(4, 5, 3)
    masks = {name: torch.rand(each.shape) > 0.4 for name, each in model.named_parameters()}
    example = torch.zeros(1, 4, dtype=torch.float64)
    under_masks = score_weights(lend(model, example, "synflow", masks=masks))[0]
    for name, parameter in model.named_parameters():
        parameter.data.mul_(masks[name])
    for name, score in scored(model, example, "synflow").items():
        assert torch.equal(score, under_masks[name])
        assert not score[~masks[name]].any()


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(x))


def test_a_tied_weight_is_scored_once_for_both_places() -> None:
    torch.manual_seed(0)
    model = Tied().double()
    scores = scored(model, torch.zeros(1, 4, dtype=torch.float64), "synflow")
    assert list(scores) == ["one.weight"]
    expected = flow(model, torch.zeros(1, 4, dtype=torch.float64)).item()
    assert float(scores["one.weight"].sum()) == pytest.approx(2 * expected, rel=1e-12)


class Two(nn.Module):
    """A network of two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.left(left), {"right": self.right(right)}


def test_every_input_is_ones_and_every_output_counts() -> None:
    model, example = Two(), ((torch.zeros(1, 3), torch.zeros(1, 4)), {})
    names = ("left.weight", "right.weight")
    scores = score_weights(Lender(model, find_groups(model, *example), example, names, "synflow"))[0]
    for name in names:
        torch.testing.assert_close(scores[name], model.get_parameter(name).detach().abs().double())


def test_integers_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))
    with pytest.raises(
        ScoreError, match=r"sends ones .* an input of this one is int64, of shape \[1, 5\].*lamp"
    ):
        scored(model, torch.zeros(1, 5, dtype=torch.int64), "synflow")


def test_what_overflows_float64_is_refused() -> None:
    model = bias_free(4, 4, 4)
    for parameter in model.parameters():
        parameter.data.fill_(1e200)
    with pytest.raises(
        ScoreError, match="for ones sums to inf, in float64 too: it is too deep for `synflow`"
    ):
        scored(model, torch.zeros(1, 4, dtype=torch.float64), "synflow")


def test_what_stops_ones_is_said() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU6(), nn.Linear(5, 3))
    model[0].weight.data.fill_(2.0)
    _, about = score_weights(lend(model, torch.zeros(1, 4), "synflow"))
    assert about.notes == (
        "nothing flows through `0.weight`: some operation stops ones, such as ReLU6 above 6; all its weights "
        "score 0",
    )


def test_a_network_without_gradients_is_refused() -> None:
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    with pytest.raises(ScoreError, match=r"does not depend on its weights.*torch\.no_grad"):
        scored(Still(), torch.zeros(1, 4), "synflow")


def test_no_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="`steps` is a whole number from 1 on, not 0"):
        scored(bias_free(4, 3), torch.zeros(1, 4, dtype=torch.float64), "synflow", arguments={"steps": "0"})
