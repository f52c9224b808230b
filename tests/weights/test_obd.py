"""`obd` against networks whose second derivatives are known, and against differentiating twice."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from prunecli.errors import DataError, ScoreError, UsageError
from prunecli.importance.undisturbed import ScoreBN
from prunecli.weights import score_weights
from tests.graph.nets import RawParameters, ReusedModule, StandardisedConv
from tests.structures import shuffle
from tests.weights.lent import lend, samples, scored

Batch = tuple[tuple[Tensor], Tensor]


def by_hand(model: nn.Module, batch: Batch, loss: Callable[..., Tensor] = cross_entropy) -> dict[str, Tensor]:
    """Return h w^2 / 2 with the diagonal of the whole Hessian of each parameter."""
    parameters = {name: each.detach() for name, each in model.named_parameters()}
    found = {}
    for name, weight in parameters.items():
        if weight.dim() < 2:
            continue

        def of(flat: Tensor, name: str = name, shape: torch.Size = weight.shape) -> Tensor:
            changed = {**parameters, name: flat.reshape(shape)}
            return loss(functional_call(model, changed, batch[0]), batch[1])

        diagonal = hessian(of, weight.flatten()).diagonal().reshape(weight.shape)
        found[name] = diagonal * weight.square() / 2
    return found


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) <= set(expected)
    for name, scores in found.items():
        torch.testing.assert_close(scores, expected[name], rtol=1e-7, atol=1e-13)


def relu_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.LeakyReLU(),
        nn.Linear(5, 3),
    )  # fmt: skip
    shuffle(net.double().eval())
    return net


def test_gauss_newton_is_the_hessian_of_a_network_of_relus() -> None:
    net, batch = relu_net(), samples((2, 8, 8), 7, 3)
    found = scored(net, batch[0][0][:1], "obd", [batch], batch_size=3)
    close(found, by_hand(net, batch))
    assert all((scores >= 0).all() for scores in found.values())


@pytest.mark.parametrize("memory", (1, 10_000))
def test_little_memory_changes_nothing(memory: int) -> None:
    net, batch = relu_net(), samples((2, 8, 8), 7, 3)
    dense = scored(net, batch[0][0][:1], "obd", [batch])
    close(scored(net, batch[0][0][:1], "obd", [batch], memory=memory), dense)


def test_it_needs_no_labels() -> None:
    net, batch = relu_net(), samples((2, 8, 8), 7, 3)
    labelled = scored(net, batch[0][0][:1], "obd", [batch])
    other = scored(net, batch[0][0][:1], "obd", [(batch[0], batch[1].flip(0))])
    none = scored(net, batch[0][0][:1], "obd", [(batch[0], None)])
    no_loss = scored(net, batch[0][0][:1], "obd", [(batch[0], None)], loss_fn=None)
    for scores in (other, none, no_loss):
        close(scores, labelled)


def test_the_formula_with_probabilities() -> None:
    torch.manual_seed(0)
    net, batch = nn.Sequential(nn.Linear(3, 4)).double(), samples((3,), 5, 4)
    inputs = batch[0][0]
    probabilities = net(inputs).softmax(1).detach()
    expected = torch.zeros(4, 3).double()
    for sample in range(5):
        for out in range(4):
            for place in range(3):
                jacobian = torch.zeros(4).double()
                jacobian[out] = inputs[sample, place]
                p = probabilities[sample]
                expected[out, place] += ((p * jacobian**2).sum() - (p * jacobian).sum() ** 2) / 5
    found = scored(net, inputs[:1], "obd", [batch])
    torch.testing.assert_close(found["0.weight"], expected * net[0].weight.detach() ** 2 / 2)


def squared(output: Tensor, targets: Tensor) -> Tensor:
    return mse_loss(output, targets) * 1.5


@pytest.mark.parametrize("way", ("exact-gn", "exact"))
def test_exact_at_the_minimum_of_a_quadratic_loss(way: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
    inputs, targets = torch.randn(9, 4).double(), torch.randn(9, 3).double()
    net[0].weight.data = torch.linalg.lstsq(inputs, targets).solution.T.contiguous()
    found = scored(net, inputs[:1], "obd", [((inputs,), targets)], {"hessian": way}, loss_fn=squared)
    expected = torch.zeros(3, 4).double()
    for out in range(3):
        for place in range(4):
            without = copy.deepcopy(net)
            without[0].weight.data[out, place] = 0
            expected[out, place] = (
                squared(without(inputs), targets) - squared(net(inputs), targets)
            ).detach()
    torch.testing.assert_close(found["0.weight"], expected, rtol=1e-9, atol=1e-12)


def smooth() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    shuffle(net)
    return net


def test_exact_on_a_smooth_network_has_signs() -> None:
    net, batch = smooth(), samples((4,), 8, 3)
    found = scored(net, batch[0][0][:1], "obd", [batch], {"hessian": "exact"}, batch_size=4)
    close(found, by_hand(net, batch))
    assert (found["0.weight"] < 0).any()


def test_random_probes_come_near() -> None:
    net, batch = smooth(), samples((4,), 8, 3)
    expected = by_hand(net, batch)
    found = scored(net, batch[0][0][:1], "obd", [batch], {"hessian": "hutchinson", "draws": 4000})
    again = scored(net, batch[0][0][:1], "obd", [batch], {"hessian": "hutchinson", "draws": 4000})
    for name, scores in found.items():
        assert torch.equal(scores, again[name])
        assert (scores - expected[name]).norm() < 0.1 * expected[name].norm()


def test_dead_relus_make_exact_zeros() -> None:
    net, batch = relu_net(), samples((2, 8, 8), 7, 3)
    net[4].bias.data[1] = -1e6  # type: ignore[union-attr, index]
    found = scored(net, batch[0][0][:1], "obd", [batch])
    assert (found["4.weight"][1] == 0).all()
    assert (found["7.weight"][:, 4:8] == 0).all()
    assert (found["4.weight"][0] > 0).all()


class Standardised(nn.Sequential):
    """A weight that is computed from another, between layers that are not."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 3, 1), StandardisedConv(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
        )


@pytest.mark.parametrize(
    ("build", "shape"), ((RawParameters, (6,)), (ReusedModule, None), (Standardised, (2, 4, 4)))
)
def test_weights_used_in_other_ways(build: Callable[[], nn.Module], shape: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    net = build().double().eval()
    batch = samples(shape or (3, 8, 8), 4, 3)
    expected = {}
    # Gauss-Newton from whole Jacobians: shared and computed weights bend by themselves, too.
    parameters = {name: each.detach() for name, each in net.named_parameters()}
    for name, weight in parameters.items():
        jacobian = torch.autograd.functional.jacobian(
            lambda value, name=name: functional_call(net, {**parameters, name: value}, batch[0]), weight
        ).flatten(2)
        p = net(batch[0][0]).softmax(1).detach()[:, :, None]
        diagonal = ((p * jacobian**2).sum(1) - (p * jacobian).sum(1) ** 2).mean(0)
        expected[name] = diagonal.reshape(weight.shape) * weight**2 / 2
    close(scored(net, batch[0][0][:1], "obd", [batch]), expected)


def test_batches_count_by_their_samples() -> None:
    net, batch = relu_net(), samples((2, 8, 8), 7, 3)
    whole, about = score_weights(lend(net, batch[0][0][:1], "obd", [batch], batch_size=7))
    parts, _ = score_weights(lend(net, batch[0][0][:1], "obd", [batch], batch_size=4))
    close(dict(parts), dict(whole))
    assert about.samples == 7


def test_gauss_newton_refuses_statistics_of_the_batch() -> None:
    net, batch = relu_net(), samples((2, 8, 8), 7, 3)
    with pytest.raises(ScoreError, match="takes each sample by itself"):
        scored(net, batch[0][0][:1], "obd", [batch], score_bn=ScoreBN.TRAIN)


@pytest.mark.parametrize("way", ("hutchinson", "exact"))
def test_other_ways_need_labels(way: str) -> None:
    net, batch = smooth(), samples((4,), 8, 3)
    with pytest.raises(DataError, match=f"hessian={way} needs labelled samples and a loss"):
        scored(net, batch[0][0][:1], "obd", [(batch[0], None)], {"hessian": way})


@pytest.mark.parametrize("labelled", (True, False))
def test_a_loss_that_is_not_finite_is_refused(labelled: bool) -> None:
    net, ((inputs,), labels) = smooth(), samples((4,), 8, 3)
    batch = ((inputs * torch.nan,), labels if labelled else None)
    with pytest.raises(ScoreError, match="Batch 0 .* the loss is nan"):
        scored(net, inputs[:1], "obd", [batch])


def test_draws_is_a_count() -> None:
    with pytest.raises(UsageError, match="`draws` is a whole number from 1 on, not 0"):
        scored(smooth(), torch.zeros(1, 4).double(), "obd", [], {"draws": 0})


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to score the weights on"):
        scored(smooth(), torch.zeros(1, 4).double(), "obd", [])
