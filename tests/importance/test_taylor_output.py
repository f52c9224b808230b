"""`taylor-output` against numbers worked by hand, and a plain twin."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunecli.graph.groups import find_groups
from prunecli.importance import score
from prunecli.importance.taylor_output import Absolute
from tests.structures import Case, conv_norm

EVERY_ABSOLUTE = pytest.mark.parametrize("absolute", tuple(Absolute))


def raw(absolute: str, activations: Tensor) -> float:
    """Return the first unit's score before its layer is normalised, where dE/da is 1 everywhere.

    The second unit is one everywhere, so that its score is 1 before the layer is normalised.
    """
    model = nn.Sequential(nn.Conv1d(2, 2, 1, bias=False), nn.Conv1d(2, 1, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2)[:, :, None])
        model[1].weight.fill_(1)
    inputs = torch.stack([activations, torch.ones_like(activations)], dim=1)
    structure = find_groups(model, (inputs[:1],))
    loss = lambda output, _: output.sum((1, 2)).mean()  # noqa: E731
    found = score(
        model, structure, [(inputs, torch.zeros(len(inputs)))], loss, ["taylor-output"],
        method_args={"absolute": absolute},
    )["taylor-output"].by_group["0"]  # fmt: skip
    assert found.square().sum().item() == pytest.approx(1)
    return (found[0] / found[1]).item()


@pytest.mark.parametrize(("absolute", "expected"), (("spatial", 0.5), ("element", 1.0), ("end", 0.5)))
def test_worked_numbers(absolute: str, expected: float) -> None:
    assert raw(absolute, torch.tensor([[1.0, -1.0, 2.0, 0.0]]).double()) == pytest.approx(expected)


@pytest.mark.parametrize(("absolute", "expected"), (("spatial", 0.5), ("element", 1.0), ("end", 0.0)))
def test_two_samples_of_opposite_sign(absolute: str, expected: float) -> None:
    samples = torch.tensor([[1.0, -1.0, 2.0, 0.0], [-1.0, 1.0, -2.0, 0.0]]).double()
    assert raw(absolute, samples) == pytest.approx(expected)


def twin(case: Case, batches: list[tuple[tuple[Tensor], Tensor]], absolute: Absolute) -> dict[str, Tensor]:
    """Take the outputs of the normalisations and their gradients, and follow the words."""
    totals: dict[str, list[Tensor]] = {"0": [], "3": []}
    for (inputs,), targets in batches:
        x, kept = inputs, {}
        for number, layer in enumerate(case.model):
            x = layer(x)
            if number in (1, 4):  # the normalisations
                kept[str(number - 1)] = x
        gradients = torch.autograd.grad(cross_entropy(x, targets), list(kept.values()))
        for (name, out), gradient in zip(kept.items(), gradients, strict=True):
            totals[name].append((out * gradient * len(targets)).detach().flatten(2))
    scores = {}
    for name, parts in totals.items():
        product = torch.cat(parts)
        match absolute:
            case Absolute.SPATIAL:
                found = product.mean(2).abs().mean(0)
            case Absolute.ELEMENT:
                found = product.abs().mean((0, 2))
            case Absolute.END:
                found = product.mean((0, 2)).abs()
        scores[name] = found / (found.norm() + 1e-8)
    return scores


@EVERY_ABSOLUTE
def test_agrees_with_a_plain_twin(absolute: Absolute) -> None:
    case = conv_norm()
    batches = [case.batch(4, seed=1), case.batch(3, seed=2)]
    found = score(
        case.model, case.structure, batches, cross_entropy, ["taylor-output"], micro_batch=4,
        method_args={"absolute": absolute},
    )["taylor-output"].by_group  # fmt: skip
    for name, expected in twin(case, batches, absolute).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-15)


def test_other_methods_in_the_same_pass_change_nothing() -> None:
    case = conv_norm()
    names = ["taylor-fo-fg", "taylor-output", "taylor-so"]
    together = score(case.model, case.structure, [case.batch()], cross_entropy, names)
    for name in names:
        alone = score(case.model, case.structure, [case.batch()], cross_entropy, [name])
        assert alone[name].to_bytes() == together[name].to_bytes()


def test_a_layer_that_does_nothing_scores_zero() -> None:
    case = conv_norm()
    with torch.no_grad():
        case.model[7].weight.zero_()
    found = score(case.model, case.structure, [case.batch()], cross_entropy, ["taylor-output"])
    assert found["taylor-output"].by_group["0"].tolist() == [0] * 5
