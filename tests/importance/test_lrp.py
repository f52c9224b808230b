"""`lrp` against layers that are propagated by hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, fold, unfold

from prunecli.errors import ScoreError
from prunecli.graph.calls import following
from prunecli.graph.groups import find_groups
from prunecli.graph.structure import CallKey, Group, Site, SiteKind
from prunecli.importance import score
from prunecli.importance.relevance import Relevance
from tests.structures import Case, conv_norm, mlp, shuffle


def scored(model: nn.Module, inputs: Tensor, targets: Tensor, micro_batch: int = 64) -> Mapping[str, Tensor]:
    structure = find_groups(model, (inputs[:1],))
    batches = [((inputs,), targets)]
    return score(model, structure, batches, cross_entropy, ["lrp"], micro_batch=micro_batch)["lrp"].by_group


def listened(
    model: nn.Module,
    inputs: Tensor,
    sites: Mapping[CallKey, list[tuple[Group, Site]]],
    targets: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what starts at the output, and what arrives in the modules listened to."""
    heard: dict[str, Tensor] = {}

    def hear(group: Group, site: Site, relevance: Tensor) -> None:
        heard[site.call.module] = relevance.clone()

    model.requires_grad_(False)
    with following(model) as modules, Relevance(modules, sites, hear) as watch:
        output = model(inputs)
    start = output.detach() if targets is None else at_labels(output, targets)
    torch.autograd.grad(output, watch.starts, start)
    return start, heard


def relevances(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what starts at the labels, and what arrives in every module that makes units."""
    sites = {
        site.call: [(group, site)]
        for group in find_groups(model, (inputs[:1],)).groups
        for site in group.sites
        if site.kind is SiteKind.MADE
    }
    return listened(model, inputs, sites, targets)


def through_linear(relevance: Tensor, data: Tensor, weight: Tensor) -> Tensor:
    """Propagate by the z+ rule, by loops."""
    relevance, data, weight = relevance.detach(), data.detach(), weight.detach()
    found = torch.zeros_like(data)
    for b in range(len(data)):
        for j in range(len(weight)):
            positive = [max(float(data[b, i] * weight[j, i]), 0.0) for i in range(data.shape[1])]
            for i, each in enumerate(positive):
                found[b, i] += float(relevance[b, j]) * each / sum(positive) if sum(positive) else 0.0
    return found


def at_labels(output: Tensor, targets: Tensor) -> Tensor:
    start = torch.zeros_like(output)
    for b, label in enumerate(targets.tolist()):
        start[b, label] = output[b, label]
    return start.detach()


def normed(relevance: Tensor) -> Tensor:
    sums = relevance.abs().transpose(0, 1).reshape(relevance.shape[1], -1).sum(1)
    return sums / sums.sum()


def test_agrees_with_loops_on_linear_layers() -> None:
    case: Case = mlp()
    (inputs,), targets = case.batch(9)
    first, second = case.model[:2](inputs).detach(), case.model[:4](inputs).detach()
    at_second = through_linear(at_labels(case.model(inputs), targets), second, case.model[4].weight)
    at_first = through_linear(at_second, first, case.model[2].weight)
    found = scored(case.model, inputs, targets, micro_batch=4)
    torch.testing.assert_close(found["2"], normed(at_second))
    torch.testing.assert_close(found["0"], normed(at_first))


def test_convolutions_behind_which_gamma_is_negative_agree_with_loops() -> None:
    case = conv_norm()
    case.model[4].weight.data[:2] *= -1
    assert (case.model[4].weight < 0).any()
    assert (case.model[4].weight > 0).any()
    (inputs,), targets = case.batch(5)
    flat, data = case.model[:7](inputs).detach(), case.model[:3](inputs).detach()
    at_maps = through_linear(at_labels(case.model(inputs), targets), flat, case.model[7].weight)
    # The convolution is a linear layer on what its kernel sees, gamma's signs in its weight.
    weight = (case.model[3].weight * case.model[4].weight.sign()[:, None, None, None]).flatten(1).detach()
    seen = unfold(data, 3, padding=1).transpose(1, 2).reshape(-1, 45)
    by_place = at_maps.reshape(5, 4, 16).transpose(1, 2).reshape(-1, 4)
    at_seen = through_linear(by_place, seen, weight).reshape(5, 16, 45).transpose(1, 2)
    found = scored(case.model, inputs, targets, micro_batch=3)
    torch.testing.assert_close(found["3"], normed(at_maps.reshape(5, 4, 16)))
    torch.testing.assert_close(found["0"], normed(fold(at_seen, (4, 4), 3, padding=1)))


def test_scores_of_a_group_add_up_to_one() -> None:
    case = conv_norm()
    (inputs,), targets = case.batch()
    for values in scored(case.model, inputs, targets).values():
        assert float(values.sum()) == pytest.approx(1)


class Net(nn.Module):
    """Convolutions, pools and a residual block, in place and not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.one, self.two = nn.Conv2d(6, 5, 3, bias=False, padding=1), nn.Conv2d(5, 6, 1, bias=False)
        self.two_norm, self.wide = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, stride=2, bias=False)
        self.drop, self.hidden = nn.Dropout(), nn.Linear(16, 7, bias=False)
        self.head = nn.Linear(7, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.stem_norm(self.stem((x - 0.5) / x.std())).relu_(), 2)
        branch = self.two_norm(self.two(self.one(x).relu()))
        branch += x
        x = nn.functional.avg_pool2d(self.wide(branch.relu()).relu(), 2)
        x = torch.cat([x, x], 1).mean((2, 3))
        return self.head(self.drop(self.hidden(x).relu()))


def net() -> nn.Module:
    """Return a network without biases, those of normalisations included."""
    torch.manual_seed(0)
    model = Net()
    shuffle(model)
    for norm in (model.stem_norm, model.two_norm):
        norm.bias.data.zero_()
        norm.running_mean.zero_()  # type: ignore[union-attr]
    return model.double().eval()


def test_no_relevance_is_lost_on_the_way() -> None:
    inputs, targets = torch.randn(6, 3, 18, 18, dtype=torch.float64), torch.arange(6) % 4
    start, found = relevances(net(), inputs, targets)
    sums = {name: float(each.sum()) for name, each in found.items()}
    for name in ("hidden", "wide", "stem_norm", "stem"):
        assert sums[name] == pytest.approx(float(start.sum()), rel=1e-9), name
    # What the branch of the residual block gets goes through it whole; the rest goes past it.
    assert sums["two_norm"] == pytest.approx(sums["two"], rel=1e-9)
    assert sums["two_norm"] == pytest.approx(sums["one"], rel=1e-9)
    assert 0 < sums["one"] / float(start.sum()) < 1


def test_the_largest_takes_it_all_in_a_max_pool() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.MaxPool1d(4), nn.Flatten(), nn.Linear(2, 2)).double()
    inputs = torch.randn(3, 1, 4, dtype=torch.float64)
    _, found = relevances(model, inputs, torch.zeros(3, dtype=torch.int64))
    elsewhere = torch.ones(3, 2, 4, dtype=torch.bool).scatter(
        2, model[0](inputs).argmax(2, keepdim=True), False
    )
    assert found["0"].any()
    assert not found["0"][elsewhere].any()


class Sum(nn.Module):
    """Two layers added up, averaged with zeros, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        summed = self.one(x) + self.two(x)
        return torch.stack([summed, summed * 0], 1).mean(1).sum(1, keepdim=True)


def test_additions_and_averages_share_out_in_proportion() -> None:
    torch.manual_seed(0)
    model, inputs = Sum().double().requires_grad_(False), torch.randn(4, 2, dtype=torch.float64)
    one, two = model.one(inputs), model.two(inputs)
    units, every = Group("one", 3, ()), np.arange(3)
    sites = {
        key: [(units, Site(key, SiteKind.MADE, None, -1, 3, every, every, ()))]
        for key in (CallKey("one", "linear", 0), CallKey("two", "linear", 0))
    }
    output, heard = listened(model, inputs, sites)
    whole = (one + two).sum(1, keepdim=True) / 2
    torch.testing.assert_close(output, whole)
    same_way = ((one + two) * whole.sign()).clamp_min(0)
    at_sum = whole * same_way / same_way.sum(1, keepdim=True)
    mine, its = (((part * (one + two).sign()).clamp_min(0)) for part in (one, two))
    torch.testing.assert_close(heard["one"], at_sum * mine / (mine + its))
    torch.testing.assert_close(heard["two"], at_sum * its / (mine + its))


def test_what_has_no_rule_is_refused_by_name() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.gate, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x) * self.gate(x).sigmoid())

    inputs, targets = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ScoreError, match="`sigmoid` in `the model`: no rule says how relevance passes"):
        scored(Gated(), inputs, targets)
    layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    with pytest.raises(ScoreError, match="`layer_norm` in `3`: no rule"):
        scored(layers, inputs, targets)


def test_labels_are_class_numbers() -> None:
    case = mlp()
    (inputs,), targets = case.batch()
    structure = case.structure
    with pytest.raises(ScoreError, match="starts at the logit of the true class"):
        score(case.model, structure, [((inputs,), targets.double())], lambda o, t: o.sum(), ["lrp"])
