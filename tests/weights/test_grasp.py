"""`grasp` against whole Hessians, and by what is left of the gradient."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy, mse_loss

from prunecli.errors import DataError, ScoreError, UsageError
from prunecli.weights import RatioBase, WeightBudget, choose_masks
from tests.weights.lent import bias_free, lend, samples, scored

EXAMPLE = torch.zeros(1, 6, dtype=torch.float64)
AS_IT_COMES = {"per_class": 0, "temperature": 1.0}
PRUNED_FIFTH = WeightBudget(Fraction(5, 4), RatioBase.PRUNABLE)


class Quadratic(nn.Module):
    """Three weights whose squares, each times its curvature, are the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False, dtype=torch.float64)
        self.layer.weight.data.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_the_quadratic_solved_by_hand() -> None:
    # E = 1/2 sum of h w^2 with h = (1, 2, 3): g = h w and H g = h^2 w, so the scores are 1, 4 and 9. One
    # sample per weight, of size sqrt(3 h), has the mean of half its squared output for a loss.
    inputs = torch.diag(torch.tensor([3.0, 6.0, 9.0], dtype=torch.float64).sqrt())
    batch = ((inputs,), torch.zeros(3, 1, dtype=torch.float64))
    options: dict[str, Any] = {"loss_fn": lambda output, target: mse_loss(output, target) / 2}
    example = torch.zeros(1, 3, dtype=torch.float64)
    scores = scored(Quadratic(), example, "grasp", [batch], AS_IT_COMES, **options)
    assert scores["layer.weight"][0].tolist() == pytest.approx([1, 4, 9])
    turned = scored(Quadratic(), example, "grasp", [batch], {**AS_IT_COMES, "sign": "thesis"}, **options)
    assert turned["layer.weight"][0].tolist() == pytest.approx([-1, -4, -9])


@pytest.mark.parametrize(("temperature", "batch_size"), ((1.0, 16), (200.0, 16), (3.0, 5)))
def test_agrees_with_the_whole_hessian(temperature: float, batch_size: int) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    (inputs,), labels = samples((6,), 16, 3)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes = [weight.numel() for weight in weights.values()]
    prunable = torch.cat([torch.full((w.numel(),), w.ndim == 2) for w in weights.values()])

    def loss(flat: Tensor) -> Tensor:
        parts = {
            name: part.view_as(weight)
            for (name, weight), part in zip(weights.items(), flat.split(sizes), strict=True)
        }
        return cross_entropy(functional_call(model, parts, (inputs,)) / temperature, labels)

    flat = torch.cat([weight.flatten() for weight in weights.values()])
    gradient = torch.func.grad(loss)(flat) * prunable  # the prunable weights' own: biases are no part of it
    expected = (flat * (hessian(loss)(flat) @ gradient))[prunable]
    arguments = {"per_class": 0, "temperature": temperature}
    scores = scored(model, EXAMPLE, "grasp", [((inputs,), labels)], arguments, batch_size=batch_size)
    found = torch.cat([scores["0.weight"].flatten(), scores["2.weight"].flatten()])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def surviving(model: nn.Module, masks: dict[str, Tensor], batch: Any) -> float:
    """Return the squared gradient of the weights that stay, in the network without the others."""
    weights = {
        name: (each.detach() * masks[name]).requires_grad_(True) for name, each in model.named_parameters()
    }
    (inputs,), labels = batch
    loss = cross_entropy(functional_call(model, weights, (inputs,)), labels)
    found = torch.autograd.grad(loss, list(weights.values()))
    return sum(float((each * mask).square().sum()) for each, mask in zip(found, masks.values(), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_what_stays_carries_the_gradient(seed: int) -> None:
    model, batch = bias_free(6, 24, 24, 3, seed=seed), samples((6,), 60, 3, seed=seed)

    def left(method: str, **arguments: Any) -> float:
        lender = lend(model, EXAMPLE, method, [batch], arguments)
        return surviving(model, dict(choose_masks(lender, PRUNED_FIFTH).masks), batch)

    paper, thesis = (left("grasp", **AS_IT_COMES, sign=sign) for sign in ("paper", "thesis"))
    assert thesis < left("random") / 2
    assert left("random") < paper / 2


def test_the_sample_has_as_many_of_each_class() -> None:
    model, batch = bias_free(6, 5, 3), samples((6,), 60, 3)
    masking = choose_masks(lend(model, EXAMPLE, "grasp", [batch], {"per_class": 4}), PRUNED_FIFTH)
    assert masking.about.samples == 12
    assert masking.about.arguments == {"per_class": 4, "temperature": 200.0, "sign": "paper"}
    with pytest.raises(DataError, match="30 samples of each class are wanted, and of one there are only 20"):
        scored(model, EXAMPLE, "grasp", [batch], {"per_class": 30})


class WithSize(nn.Module):
    """A network that puts out logits, and their mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.net = bias_free(6, 5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(x)
        return logits, logits.square().mean()


def test_a_loss_gets_all_outputs_with_only_the_logits_divided() -> None:
    model, batch = WithSize(), samples((6,), 8, 3)

    def whole(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return cross_entropy(output[0], target) + output[1]

    def by_hand(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        return cross_entropy(output[0] / 5, target) + output[1]

    found, expected = (
        scored(model, EXAMPLE, "grasp", [batch], {"per_class": 0, "temperature": each}, loss_fn=loss_fn)
        for each, loss_fn in ((5.0, whole), (1.0, by_hand))
    )
    assert found.keys() == expected.keys() == {"net.0.weight", "net.2.weight"}
    assert all(torch.allclose(found[name], expected[name], rtol=1e-12) for name in found)


def test_other_losses_see_outputs_as_they_are() -> None:
    model = bias_free(6, 5, 3)
    (inputs,), _ = samples((6,), 8, 3)
    batch = ((inputs,), torch.ones(8, 3, dtype=torch.float64))
    hot, cold = (
        scored(model, EXAMPLE, "grasp", [batch], {"per_class": 0, "temperature": each}, loss_fn=mse_loss)
        for each in (200.0, 1.0)
    )
    assert all(torch.equal(hot[name], cold[name]) for name in hot)


class OnlyOnce(torch.autograd.Function):
    """An operation whose gradient has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 1


class Opaque(nn.Module):
    """A layer made of that operation."""

    def forward(self, x: Tensor) -> Tensor:
        return OnlyOnce.apply(x) if torch.is_grad_enabled() else x


def test_a_network_without_second_derivatives_is_refused() -> None:
    model = nn.Sequential(*bias_free(6, 5, 3), Opaque())
    with pytest.raises(
        ScoreError, match=r"Half batch 0 \(inputs \[4, 6\]\): second derivatives failed.*`snip`"
    ):
        scored(model, EXAMPLE, "grasp", [samples((6,), 8, 3)], AS_IT_COMES)


def test_a_gradient_that_is_constant_is_refused() -> None:
    options: dict[str, Any] = {"loss_fn": lambda output, _: output.mean()}
    with pytest.raises(ScoreError, match="the gradient depends on none of the prunable weights"):
        scored(bias_free(6, 3), EXAMPLE, "grasp", [samples((6,), 8, 3)], AS_IT_COMES, **options)


def test_attention_has_second_derivatives() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.out = nn.Linear(6, 12), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = self.inside(x).unflatten(-1, (3, 1, 2, 2)).unbind(1)
            return self.out(torch.nn.functional.scaled_dot_product_attention(query, key, value).flatten(1))

    (inputs,), labels = samples((6,), 8, 3)
    scores = scored(Attention(), EXAMPLE.float(), "grasp", [((inputs.float(),), labels)], AS_IT_COMES)
    assert all(bool(each.any()) for each in scores.values())


@pytest.mark.parametrize(
    ("arguments", "match"),
    (
        ({"per_class": "-1"}, "`per_class` is a whole number from 0 on, not -1"),
        ({"temperature": "0"}, "`temperature` is a number above 0, not 0"),
        ({"temperature": "inf"}, "`temperature` is a number above 0, not inf"),
        ({"sign": "minus"}, "`sign` of `grasp` is paper or thesis, not `minus`"),
    ),
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, str], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        scored(bias_free(6, 3), EXAMPLE, "grasp", [samples((6,), 8, 3)], arguments)
