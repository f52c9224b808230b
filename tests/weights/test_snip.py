"""`snip`, `snip-grad` and `gradient` against finite differences and identities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from prunecli.errors import ScoreError
from tests.weights.lent import bias_free, samples, scored

EXAMPLE = torch.zeros(1, 6, dtype=torch.float64)
BATCH = samples((6,), 12, 3)


def signed_products(model: nn.Module) -> dict[str, Tensor]:
    """Return weight times gradient, slowly: by moving every mask a little."""
    (inputs,), labels = BATCH
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for name, weight in weights.items():
        for index in range(weight.numel()):
            losses = []
            for step in (1e-6, -1e-6):
                mask = torch.ones_like(weight)
                mask.view(-1)[index] += step
                output = functional_call(model, {**weights, name: weight * mask}, (inputs,))
                losses.append(cross_entropy(output, labels))
            found[name].view(-1)[index] = (losses[0] - losses[1]) / 2e-6
    return found


def test_snip_is_the_finite_difference_in_the_mask() -> None:
    model = bias_free(6, 5, 4, 3)
    products = signed_products(model)
    total = sum(float(each.abs().sum()) for each in products.values())
    scores = scored(model, EXAMPLE, "snip", [BATCH])
    for name, each in products.items():
        torch.testing.assert_close(scores[name], each.abs() / total, rtol=1e-6, atol=1e-9)


def test_signed_layer_sums_are_equal_without_biases() -> None:
    # The loss as a function of one layer's scale is the same function for every layer of a ReLU net.
    products = signed_products(bias_free(6, 5, 4, 3))
    sums = [float(each.sum()) for each in products.values()]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-6)
    assert abs(sums[0]) > 1e-4


@pytest.mark.parametrize("method", ("snip", "snip-grad"))
def test_scores_sum_to_one(method: str) -> None:
    scores = scored(bias_free(6, 5, 4, 3), EXAMPLE, method, [BATCH])
    assert sum(float(each.sum()) for each in scores.values()) == pytest.approx(1, abs=1e-12)


def test_gradient_ranks_as_snip_does() -> None:
    model = bias_free(6, 5, 4, 3)
    one, other = (scored(model, EXAMPLE, method, [BATCH]) for method in ("snip", "gradient"))
    factor = float(sum(each.sum() for each in other.values()))
    for name, score in one.items():
        torch.testing.assert_close(score * factor, other[name])


def test_gradient_is_the_product() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[2.0, -1.0]])
    batch = ((torch.tensor([[0.5, 3.0]]),), torch.zeros(1, 1))
    scores = scored(model, torch.zeros(1, 2), "gradient", [batch], loss_fn=lambda output, _: output.sum())
    assert scores["0.weight"].tolist() == [[1.0, 3.0]]


def test_snip_grad_is_the_gradient_alone() -> None:
    model = bias_free(6, 5, 4, 3)
    (inputs,), labels = BATCH
    gradients = torch.autograd.grad(cross_entropy(model(inputs), labels), list(model.parameters()))
    total = sum(float(each.abs().sum()) for each in gradients)
    scores = scored(model, EXAMPLE, "snip-grad", [BATCH])
    for score, gradient in zip(scores.values(), gradients, strict=True):
        torch.testing.assert_close(score, gradient.abs() / total)


@pytest.mark.parametrize("method", ("snip", "snip-grad", "gradient"))
def test_batches_make_one_mean(method: str) -> None:
    model = bias_free(6, 5, 4, 3)
    (inputs,), labels = BATCH
    parts = [((inputs[:7],), labels[:7]), ((inputs[7:],), labels[7:])]
    whole, split = (
        scored(model, EXAMPLE, method, [BATCH]),
        scored(model, EXAMPLE, method, parts, batch_size=5),
    )
    for name in whole:
        torch.testing.assert_close(split[name], whole[name])


@pytest.mark.parametrize("method", ("snip", "snip-grad"))
def test_a_network_without_gradients_is_refused(method: str) -> None:
    model = bias_free(6, 5, 3)
    model[0].weight.data.zero_(), model[2].weight.data.zero_()
    with pytest.raises(ScoreError, match="depends on none of the prunable weights: every gradient is zero"):
        scored(model, EXAMPLE, method, [BATCH])
