"""`activation` worked by hand, and against a slow twin written from the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunecli.errors import DataError, ScoreError
from prunecli.weights import score_weights
from tests.graph.nets import RawParameters
from tests.structures import shuffle
from tests.weights.lent import lend, samples, scored


def linear() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).double()
    net[0].weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()
    return net


def test_worked_example() -> None:
    net = linear()
    net[0].weight.data[1] *= -1
    # ReLU outputs (1, 0) and (3, 0): mean (2, 0).
    inputs = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double()
    scores = scored(net, inputs[:1], "activation", [((inputs,), torch.zeros(2).long())])
    assert scores["0.weight"].tolist() == [[2.0, 4.0], [0.0, 0.0]]


def test_inputs_are_averaged_before_their_absolute_value() -> None:
    net = linear()
    inputs = torch.tensor([[2.0, 1.0], [-2.0, 3.0]]).double()
    scores = scored(net, inputs[:1], "activation", [((inputs,), None)], {"side": "input"})
    assert scores["0.weight"].tolist() == [[0.0, 4.0], [0.0, 8.0]]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, groups=2),
        nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
    shuffle(made.double().eval())
    return made


def reduced(activation: Tensor) -> Tensor:
    """Return a number per unit: loops over units, places and samples."""
    flat = activation.reshape(*activation.shape[:2], -1)
    means = []
    for unit in range(flat.shape[1]):
        places = [
            abs(sum(flat[sample, unit, place].item() for sample in range(len(flat))) / len(flat))
            for place in range(flat.shape[2])
        ]
        means.append(sum(places) / len(places))
    return torch.tensor(means, dtype=torch.float64)


def after(model: nn.Sequential, inputs: Tensor) -> list[Tensor]:
    """Return the inputs, and the output of each module."""
    found = [inputs]
    with torch.no_grad():
        for module in model:
            found.append(module(found[-1].clone()))
    return found


def test_output_side_against_a_slow_twin() -> None:
    model, batch = net(), samples((3, 8, 8), 7, 3)
    scores = scored(model, batch[0][0][:1], "activation", [batch], batch_size=3)
    seen = after(model, batch[0][0])
    # Behind the ReLU after a batch norm, or after pooling; else raw.
    for layer, behind in (("0", 3), ("3", 6), ("6", 7), ("8", 9)):
        weight = model.get_submodule(layer).weight
        expected = torch.stack([w.abs() * a for w, a in zip(weight, reduced(seen[behind]), strict=True)])
        torch.testing.assert_close(scores[f"{layer}.weight"], expected, rtol=1e-10, atol=0)


def test_input_side_against_a_slow_twin() -> None:
    model, batch = net(), samples((3, 8, 8), 7, 3)
    scores = scored(model, batch[0][0][:1], "activation", [batch], {"side": "input"}, batch_size=3)
    seen = after(model, batch[0][0])
    for layer, before in (("0", 0), ("3", 3), ("6", 6), ("8", 8)):
        module = model.get_submodule(layer)
        means, weight = reduced(seen[before]), module.weight.detach()
        expected = torch.zeros_like(weight)
        groups = getattr(module, "groups", 1)
        for out in range(len(weight)):
            for place in range(weight.shape[1]):
                unit = out // (len(weight) // groups) * weight.shape[1] + place
                expected[out, place] = weight[out, place].abs() * means[unit]
        torch.testing.assert_close(scores[f"{layer}.weight"], expected, rtol=1e-10, atol=0)


class AddsUp(nn.Module):
    """What two layers make is added before the ReLU: neither has one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = (nn.Linear(3, 3).double() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.one(x) + self.two(x)))


def test_a_relu_behind_a_sum_belongs_to_no_layer() -> None:
    torch.manual_seed(0)
    model, batch = AddsUp(), samples((3,), 5, 3)
    scores = scored(model, batch[0][0][:1], "activation", [batch])
    raw = model.one(batch[0][0]).detach().mean(0).abs()
    torch.testing.assert_close(scores["one.weight"], model.one.weight.detach().abs() * raw[:, None])


class Twice(nn.Module):
    """A layer that is called twice, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


def test_a_layer_called_twice_gets_the_mean_of_its_calls() -> None:
    torch.manual_seed(0)
    model, batch = Twice(), samples((3,), 5, 3)
    scores = scored(model, batch[0][0][:1], "activation", [batch])
    once = torch.relu(model.layer(batch[0][0])).detach()
    mean = (once.mean(0).abs() + model.layer(once).detach().mean(0).abs()) / 2
    torch.testing.assert_close(scores["layer.weight"], model.layer.weight.detach().abs() * mean[:, None])


def test_what_no_layer_reads_is_refused_by_name() -> None:
    model = RawParameters().double()
    batch = samples((6,), 4, 2)
    with pytest.raises(ScoreError, match=r"finds no linear layer or convolution that reads `w2` as it is"):
        scored(model, batch[0][0][:1], "activation", [batch])


def test_samples_of_other_sizes_are_refused() -> None:
    model = net()[:3]
    first, second = samples((3, 8, 8), 2, 3), samples((3, 9, 9), 2, 3)
    with pytest.raises(ScoreError, match=r"has \[4, 49\] units and places, and \[4, 36\] before"):
        scored(model, first[0][0][:1], "activation", [first, second], batch_size=2)


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to score the weights on"):
        score_weights(lend(linear(), torch.zeros(1, 2).double(), "activation", []))
