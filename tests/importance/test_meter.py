"""A meter beside a training run finds what `score` finds on the same minibatches."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunecli.errors import ScoreError
from prunecli.graph.groups import find_groups
from prunecli.importance import score
from prunecli.importance.meter import Meter
from prunecli.importance.micro_batches import MicroBatch
from prunecli.importance.undisturbed import ScoreBN


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    return nn.Sequential(*layers).double().eval()


def minibatches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 2, 4, 4, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (8,), generator=generator),
        )
        for _ in range(3)
    ]


def observe_all(meter: Meter, model: nn.Module) -> None:
    for inputs, targets in minibatches():
        model.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        meter.observe(MicroBatch((inputs,), targets, len(inputs)))


@pytest.mark.parametrize(
    ("method", "arguments"),
    (
        ("taylor-fo", {}),
        ("taylor-fo-weight", {}),
        ("taylor-so", {}),
        ("oracle", {}),
        ("contribution", {"conv": True}),
        ("activation-density", {}),
        ("magnitude", {}),
    ),
)
def test_finds_what_score_finds(method: str, arguments: dict[str, object]) -> None:
    model = network()
    structure = find_groups(model, (minibatches()[0][0][:1],))
    meter = Meter(model, structure, method, cross_entropy, arguments, score_bn=ScoreBN.EVAL)

    observe_all(meter, model)

    expected = score(
        model, structure, minibatches(), cross_entropy, [method], micro_batch=8, method_args=arguments
    )[method]
    for group, values in meter.scores().items():
        torch.testing.assert_close(values, expected.by_group[group], rtol=1e-9, atol=1e-15)


def test_goes_on_from_what_was_written_down() -> None:
    model = network()
    structure = find_groups(model, (minibatches()[0][0][:1],))
    whole, first, second = (Meter(model, structure, "taylor-fo", cross_entropy) for _ in range(3))
    observe_all(whole, model)
    for number, (inputs, targets) in enumerate(minibatches()):
        model.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        meter = second if number == 2 else first
        if number == 2:
            second.load(first.tensors(), first.plain())
        meter.observe(MicroBatch((inputs,), targets, len(inputs)))
    for group, values in whole.scores().items():
        assert torch.equal(values, second.scores()[group])


def test_looking_again_leaves_training_alone() -> None:
    model = network().train()
    structure = find_groups(model, (minibatches()[0][0][:1],))
    inputs, targets = minibatches()[0]
    cross_entropy(model(inputs), targets).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    drawn = torch.random.get_rng_state()

    Meter(model, structure, "oracle", cross_entropy).observe(MicroBatch((inputs,), targets, len(inputs)))

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(
        torch.equal(old, parameter.grad)
        for old, parameter in zip(gradients, model.parameters(), strict=True)
        if parameter.grad is not None
    )
    assert model.training
    assert torch.equal(drawn, torch.random.get_rng_state())


def test_refuses_a_group_that_the_method_cannot_score() -> None:
    model = network()
    structure = find_groups(model, (minibatches()[0][0][:1],))
    with pytest.raises(ScoreError, match="bn-scale"):
        Meter(model, structure, "bn-scale", cross_entropy)
