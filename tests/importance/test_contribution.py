"""`contribution` against loops over the formula."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, unfold

from prunecli.errors import ScoreError
from prunecli.graph.groups import find_groups
from prunecli.importance import score
from prunecli.importance.context import Merge, State
from prunecli.importance.contribution import Activation, Contribution, Ratio
from tests.structures import conv_norm, mlp


def scored(
    model: nn.Module,
    inputs: Tensor,
    method: str = "contribution",
    *,
    micro_batch: int = 64,
    **arguments: object,
) -> Mapping[str, Tensor]:
    structure = find_groups(model, (inputs[:1],))
    batches = [((inputs,), torch.zeros(len(inputs), dtype=torch.int64))]
    found = score(model, structure, batches, methods=[method], method_args=arguments, micro_batch=micro_batch)
    return found[method].by_group


def shares(data: Tensor, weight: Tensor) -> Tensor:
    """Return rho[f, j, k] of a linear layer, by loops."""
    samples, width = data.shape
    found = torch.zeros(samples, len(weight), width, dtype=torch.float64)
    for f in range(samples):
        for j in range(len(weight)):
            total = sum(float(weight[j, i] * data[f, i]) for i in range(width))
            for k in range(width):
                found[f, j, k] = float(weight[j, k] * data[f, k]) / total if total else 0.0
    return found


def two_neurons() -> nn.Module:
    """Return the worked example: a = (1, 2), W = [[1, -1], [3, 1]], behind a layer that is the identity."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    model[0].weight.data = torch.eye(2, dtype=torch.float64)
    model[2].weight.data = torch.tensor([[1.0, -1.0], [3.0, 1.0]], dtype=torch.float64)
    return model


A = torch.tensor([[1.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    (
        ({"average": 1.0, "maximum": 0.0}, (7 / 15, 8 / 15)),
        ({"average": 0.0, "maximum": 1.0}, (0.6, 2 / 3)),
        ({}, ((7 / 15 + 0.6) / 2, (8 / 15 + 2 / 3) / 2)),
        ({"average": 1.0, "maximum": 0.0, "ratio": "signed"}, (-0.2, 1.2)),
        ({"average": 0.0, "maximum": 1.0, "ratio": "signed"}, (0.6, 2.0)),
        ({"normalise": "layer-max"}, ((7 / 8 + 0.9) / 2, 1.0)),
    ),
)
def test_the_worked_example(arguments: dict[str, object], expected: tuple[float, float]) -> None:
    found = scored(two_neurons(), A, **arguments)["0"]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("ratio", ("abs", "signed"))
def test_agrees_with_loops(ratio: str) -> None:
    case = mlp()
    (inputs,), _ = case.batch(9)
    found = scored(case.model, inputs, micro_batch=4, ratio=ratio)
    for name, first, last in (("0", 2, 2), ("2", 4, 4)):
        data, weight = case.model[:first](inputs).detach(), case.model[last].weight.detach()
        assert data.any(1).all()
        rho = shares(data.abs(), weight.abs()) if ratio == "abs" else shares(data, weight)
        torch.testing.assert_close(rho.sum(2), torch.ones_like(rho[:, :, 0]))
        torch.testing.assert_close(found[name], rho.mean((0, 1)) / 2 + rho.amax((0, 1)) / 2)


def test_average_shares_add_up_to_one_and_none_is_above_the_largest() -> None:
    case = mlp()
    (inputs,), _ = case.batch(20)
    average = scored(case.model, inputs, average=1.0, maximum=0.0)
    largest = scored(case.model, inputs, average=0.0, maximum=1.0)
    for name, values in average.items():
        assert float(values.sum()) == pytest.approx(1)
        assert 1 / len(values) <= float(largest[name].max()) <= 1
        assert (values <= largest[name]).all()


def test_average_shares_are_the_slope_of_the_logarithm() -> None:
    case = mlp()
    (inputs,), _ = case.batch(8)
    data = case.model[:2](inputs).detach().requires_grad_()
    sums = data @ case.model[2].weight.detach().abs().T
    (slope,) = torch.autograd.grad(sums.log().sum(), data)
    found = scored(case.model, inputs, average=1.0, maximum=0.0)["0"]
    torch.testing.assert_close(found, (data.detach() * slope).sum(0) / sums.numel())


def test_the_inverse_ranks_the_other_way() -> None:
    case = mlp()
    (inputs,), _ = case.batch()
    found, inverse = scored(case.model, inputs), scored(case.model, inputs, "contribution-inverse")
    for name, values in found.items():
        assert torch.equal(inverse[name], -values)


def test_before_the_relu_a_silent_neuron_counts() -> None:
    case = mlp()
    (inputs,), _ = case.batch(9)
    found = scored(case.model, inputs, activation="pre", average=1.0, maximum=0.0)["0"]
    rho = shares(case.model[0](inputs).detach().abs(), case.model[2].weight.detach().abs())
    torch.testing.assert_close(found, rho.mean((0, 1)))


def test_the_window_may_be_the_last_micro_batch() -> None:
    case = mlp()
    (inputs,), _ = case.batch(10)
    found = scored(case.model, inputs, micro_batch=4, window="last-batch")
    alone = scored(case.model, inputs[8:])
    for name, values in found.items():
        assert torch.equal(values, alone[name])


def test_a_unit_that_fills_several_columns_has_the_sum_of_their_shares() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5)).double()
    inputs = torch.randn(6, 1, 3, 3, dtype=torch.float64)
    rho = shares(model[:3](inputs).detach(), model[3].weight.detach().abs())
    by_unit = rho.reshape(6, 5, 3, 4).sum(3)
    found = scored(model, inputs)["0"]
    torch.testing.assert_close(found, by_unit.mean((0, 1)) / 2 + by_unit.amax((0, 1)) / 2)


def test_several_readers_share_one_mean() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x).relu()
            return torch.cat([self.one(hidden), self.two(hidden)], 1)

    torch.manual_seed(0)
    model, inputs = Heads().double(), torch.randn(6, 3, dtype=torch.float64)
    data = model.body(inputs).relu().detach()
    rho = shares(data, torch.cat([model.one.weight, model.two.weight]).detach().abs())
    found = scored(model, inputs)["body"]
    torch.testing.assert_close(found, rho.mean((0, 1)) / 2 + rho.amax((0, 1)) / 2)


@pytest.mark.parametrize("groups", (1, 2))
def test_convolutions_are_the_linear_layer_that_they_are(groups: int) -> None:
    torch.manual_seed(0)
    reader = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=groups, bias=False)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), reader, nn.Flatten(), nn.Linear(24, 3)).double()
    inputs = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    data, weight = model[:2](inputs).detach(), reader.weight.detach().abs()
    sums = conv2d(data, weight, stride=2, padding=1, groups=groups)
    rho, width = [], 4 // groups
    for unit in range(width):  # a grouped convolution gives up one channel of each of its groups
        alone = torch.zeros_like(data)
        alone[:, unit::width] = data[:, unit::width]
        rho.append(conv2d(alone, weight, stride=2, padding=1, groups=groups) / sums)
    expected = torch.stack(rho, -1).flatten(0, -2)
    torch.testing.assert_close(expected.sum(1), torch.ones(len(expected), dtype=torch.float64))
    if groups == 1:
        by_hand = unfold(data, 3, padding=1, stride=2)[0].reshape(4, 9, 4)[
            :, :, 3
        ]  # last place, first sample
        share = (weight[5].reshape(4, 9) * by_hand).sum(1) / sums[0, 5, 1, 1]
        torch.testing.assert_close(torch.stack(rho)[:, 0, 5, 1, 1], share)
    found = scored(model, inputs, conv=True)["0"]
    torch.testing.assert_close(found, expected.mean(0) / 2 + expected.amax(0) / 2)


def test_sums_of_zero_are_left_out_and_counted() -> None:
    inputs = torch.tensor([[1.0, 2.0], [-1.0, -1.0]], dtype=torch.float64)  # the second silences both
    found = scored(two_neurons(), inputs, average=1.0, maximum=0.0)["0"]
    torch.testing.assert_close(found, torch.tensor([7 / 15, 8 / 15], dtype=torch.float64))


def test_what_was_left_out_or_moved_is_said() -> None:
    rows = torch.tensor([[0.4, 0.6], [2.0, 2.0], [3.0, 3.0]], dtype=torch.float64)
    state = State({"0": rows, "2": rows})
    assert Contribution().notes(state) == ("6 sums of contributions were zero (below 1e-12), and left out.",)
    (note,) = Contribution(ratio=Ratio.SIGNED).notes(state)
    assert note == "6 sums of contributions were nearer to zero than 1e-06, and moved there."
    rows[2] = 0
    assert Contribution().notes(state) == ()


def test_signed_sums_are_kept_away_from_zero() -> None:
    model = two_neurons()
    model[2].weight.data = torch.tensor([[2.0, -1.0], [3.0, 1.0]], dtype=torch.float64)  # 2 * 1 - 1 * 2 = 0
    found = scored(model, A, average=1.0, maximum=0.0, ratio="signed")["0"]
    torch.testing.assert_close(found, torch.tensor([(2e6 + 0.6) / 2, (-2e6 + 0.4) / 2], dtype=torch.float64))


def test_states_merge_sums_and_maxima_apart() -> None:
    one = torch.tensor([1.0, 5.0], dtype=torch.float64)
    other = torch.tensor([3.0, 2.0], dtype=torch.float64)
    both = State({"0": one}, maxima={"0": one}).merged(State({"0": other}, maxima={"0": other}))
    assert (both.values["0"].tolist(), both.maxima["0"].tolist()) == ([4.0, 7.0], [3.0, 5.0])
    last = State({"0": one}, Merge.LAST, {"0": one}).merged(State({"0": other}, Merge.LAST, {"0": other}))
    assert (last.values["0"].tolist(), last.maxima["0"].tolist()) == ([3.0, 2.0], [3.0, 2.0])


def test_convolutions_are_refused_unless_asked_for() -> None:
    case = conv_norm()
    (inputs,), _ = case.batch()
    with pytest.raises(ScoreError, match="`0`.*, which is read by a convolution .*conv=true"):
        scored(case.model, inputs)


def test_pre_needs_what_is_read_to_be_what_was_made() -> None:
    case = conv_norm()
    (inputs,), _ = case.batch()
    with pytest.raises(ScoreError, match="`3`, which is not read as it was made.*activation=post"):
        scored(case.model, inputs, conv=True, activation=Activation.PRE)


def test_units_that_no_layer_adds_up_are_refused() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.table = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).relu() @ self.table

    with pytest.raises(ScoreError, match="`body`, which is read by no linear layer and by no convolution"):
        scored(Product(), torch.randn(4, 3))
