"""`i-spasp` against the algorithm of the paper, with V and the gradients written out."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from prunecli.errors import ScoreError
from prunecli.graph.groups import find_groups
from prunecli.importance import score
from prunecli.importance.i_spasp import Importance, selections, shares_of_sizes
from tests.structures import conv_norm, mlp, residual

NESTED = 4
"""A seed for which each selection holds the smaller ones."""
EVERY_IMPORTANCE = pytest.mark.parametrize("importance", tuple(Importance))


def scored(
    model: nn.Module, inputs: Tensor, *, micro_batch: int = 64, **arguments: object
) -> Mapping[str, Tensor]:
    structure = find_groups(model, (inputs[:1],))
    batches = [((inputs,), torch.zeros(len(inputs), dtype=torch.int64))]
    return score(
        model, structure, batches, methods=["i-spasp"], method_args=arguments, micro_batch=micro_batch
    )["i-spasp"].by_group


def top(values: Tensor, among: set[int], size: int) -> set[int]:
    return set(sorted(among, key=lambda unit: (-float(values[unit]), unit))[:size])


def improved(selected: set[int], y: Tensor, sums: Tensor, size: int) -> set[int]:
    """Return the next S. Silent units are not selected even where there is room for them."""
    candidates = top(y, set(range(len(sums))), 2 * size) | selected
    return top(sums, {unit for unit in candidates if sums[unit] != 0}, size)


def by_residual(weight: Tensor, hidden: Tensor, size: int, importance: Importance) -> set[int]:
    """Return S(size) of the two-layer form, with H [width, samples] and the residual V kept whole."""
    selected = set[int]()
    for _ in range(20):
        kept = sorted(selected)
        residual = weight @ hidden - weight[:, kept] @ hidden[kept]
        y = (weight.T @ residual).sum(1)
        y = y.abs() if importance is Importance.ABS else y
        before, selected = selected, improved(selected, y, hidden.sum(1), size)
        if selected == before:
            break
    return selected


def by_gradient(
    readers: list[nn.Module], data: list[Tensor], width: int, size: int, importance: Importance
) -> set[int]:
    """Return S(size) of the convolution form: two forward passes, and the gradient in the dense maps.

    Channel c belongs to unit c % width: a grouped convolution gives up one channel of each of its groups.
    """
    sums = torch.stack([unit_sums(each, width) for each in data]).sum(0)
    selected = set[int]()
    for _ in range(20):
        y = torch.zeros(width, dtype=torch.float64)
        for reader, maps in zip(readers, data, strict=True):
            dense, pruned = maps.clone().requires_grad_(), maps.clone()
            for channel in range(maps.shape[1]):
                if channel % width not in selected:
                    pruned[:, channel] = 0
            loss = (reader(dense) - reader(pruned)).square().sum() / 2
            (gradient,) = torch.autograd.grad(loss, dense)
            y += unit_sums(gradient, width)
        y = y.abs() if importance is Importance.ABS else y
        before, selected = selected, improved(selected, y, sums, size)
        if selected == before:
            break
    return selected


def unit_sums(maps: Tensor, width: int) -> Tensor:
    by_channel = maps.transpose(0, 1).reshape(maps.shape[1], -1).sum(1)
    return by_channel.reshape(-1, width).sum(0)


def share(selected: list[set[int]], width: int) -> Tensor:
    shares = [sum(unit in each for each in selected) / width for unit in range(width)]
    return torch.tensor(shares, dtype=torch.float64)


def test_the_tiny_example_selects_the_middle_unit() -> None:
    hidden = torch.tensor([[1.0, 2.0], [4.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False)).double()
    for layer in (model[0], model[2]):
        layer.weight.data = torch.eye(3, dtype=torch.float64)
    assert by_residual(torch.eye(3, dtype=torch.float64), hidden, 1, Importance.SIGNED) == {1}
    found = scored(model, hidden.T)["0"]
    torch.testing.assert_close(found, torch.tensor([2 / 3, 1, 1 / 3], dtype=torch.float64))


@EVERY_IMPORTANCE
@pytest.mark.parametrize("seed", (0, 1, 2))
def test_a_planted_support_is_recovered(importance: Importance, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = 1e-3 * torch.rand(100, 256, generator=generator, dtype=torch.float64)
    support = torch.randperm(100, generator=generator)[:8]
    hidden[support] = 0.5 + torch.rand(8, 256, generator=generator, dtype=torch.float64)
    weight = torch.randn(60, 100, generator=generator, dtype=torch.float64)
    sums = hidden.sum(1)
    found = selections(weight.T @ weight * sums, sums, torch.tensor([8]), importance=importance)[0]
    assert set(found.nonzero().flatten().tolist()) == set(support.tolist())


@EVERY_IMPORTANCE
@pytest.mark.parametrize("seed", (0, 1, 2))
def test_sums_over_samples_select_what_the_residual_selects(importance: Importance, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(30, 40, generator=generator, dtype=torch.float64).relu()
    weight = torch.randn(12, 30, generator=generator, dtype=torch.float64)
    sums = hidden.sum(1)
    sizes = torch.arange(1, 31)
    found = selections(weight.T @ weight * sums, sums, sizes, importance=importance)
    for size, units in zip(sizes.tolist(), found, strict=True):
        assert set(units.nonzero().flatten().tolist()) == by_residual(weight, hidden, size, importance)


def test_the_best_scores_are_the_selection_where_selections_are_nested() -> None:
    generator = torch.Generator().manual_seed(NESTED)
    hidden = torch.rand(12, 20, generator=generator, dtype=torch.float64)
    weight = torch.randn(9, 12, generator=generator, dtype=torch.float64)
    selected = [by_residual(weight, hidden, size, Importance.SIGNED) for size in range(1, 13)]
    assert all(smaller <= larger for smaller, larger in zip(selected, selected[1:], strict=False))
    sums = hidden.sum(1)
    assert selected != [top(sums, set(range(12)), size) for size in range(1, 13)]  # y has a say
    order = shares_of_sizes(weight.T @ weight * sums, sums).argsort(descending=True, stable=True)
    for size, units in enumerate(selected, start=1):
        assert set(order[:size].tolist()) == units


@EVERY_IMPORTANCE
def test_agrees_with_the_residual_on_linear_layers(importance: Importance) -> None:
    case = mlp()
    (inputs,), _ = case.batch(11)
    found = scored(case.model, inputs, micro_batch=4, importance=importance)
    for name, last in (("0", 2), ("2", 4)):
        hidden, weight = case.model[:last](inputs).T.detach(), case.model[last].weight.detach()
        width = len(hidden)
        selected = [by_residual(weight, hidden, size, importance) for size in range(1, width + 1)]
        torch.testing.assert_close(found[name], share(selected, width))


READERS = (
    nn.Conv2d(12, 10, 3, padding=1),
    nn.Conv2d(12, 10, 3, stride=2, padding=(0, 1), dilation=(1, 2)),
    nn.Conv2d(12, 10, (1, 3), padding="same"),
    nn.Conv2d(12, 9, 3, groups=3, padding=2),
    nn.ConvTranspose2d(12, 10, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(12, 8, 3, stride=2, groups=4),
)


@EVERY_IMPORTANCE
@pytest.mark.parametrize("reader", READERS, ids=str)
def test_agrees_with_the_gradient_of_two_forward_passes(reader: nn.Module, importance: Importance) -> None:
    torch.manual_seed(3)
    for parameter in reader.parameters():
        nn.init.normal_(parameter)
    model = nn.Sequential(nn.Conv2d(2, 12, 3), nn.ReLU(), reader, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = model.append(nn.Linear(reader.out_channels, 3)).double()  # type: ignore[arg-type]
    inputs = torch.randn(6, 2, 7, 6, dtype=torch.float64)
    maps = model[:2](inputs).detach()
    width = 12 // reader.groups  # type: ignore[operator]
    selected = [by_gradient([reader], [maps], width, size, importance) for size in range(1, width + 1)]
    found = scored(model, inputs, micro_batch=4, importance=importance)["0"]
    torch.testing.assert_close(found, share(selected, width))


def test_a_convolution_of_one_dimension_agrees_too() -> None:
    torch.manual_seed(0)
    reader = nn.Conv1d(8, 5, 3, padding=1, stride=2)
    model = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), reader, nn.Flatten(), nn.Linear(20, 3)).double()
    inputs = torch.randn(6, 2, 9, dtype=torch.float64)
    maps = model[:2](inputs).detach()
    selected = [by_gradient([reader], [maps], 8, size, Importance.SIGNED) for size in range(1, 9)]
    torch.testing.assert_close(scored(model, inputs)["0"], share(selected, 8))


def test_the_columns_of_a_flattened_map_are_its_places() -> None:
    case = conv_norm()
    (inputs,), _ = case.batch(9)
    maps = case.model[:6](inputs).detach()
    linear = case.model[7]
    reader = nn.Conv2d(4, 3, 4).double()  # reads all places at once: the same layer
    reader.weight.data, reader.bias.data = linear.weight.data.reshape(3, 4, 4, 4), linear.bias.data
    selected = [by_gradient([reader], [maps], 4, size, Importance.SIGNED) for size in range(1, 5)]
    torch.testing.assert_close(scored(case.model, inputs)["3"], share(selected, 4))


def test_several_readers_add_up() -> None:
    case = residual()
    (inputs,), _ = case.batch(9)
    seen: dict[str, Tensor] = {}
    readers = {name: getattr(case.model, name) for name in ("in1", "in2", "head")}
    handles = [
        reader.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].detach()}))
        for name, reader in readers.items()
    ]
    case.model(inputs)
    for handle in handles:
        handle.remove()
    layers, data = list(readers.values()), [seen[name] for name in readers]
    selected = [by_gradient(layers, data, 6, size, Importance.SIGNED) for size in range(1, 7)]
    torch.testing.assert_close(scored(case.model, inputs)["stem"], share(selected, 6))


def test_a_wide_layer_takes_a_moment_only() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 1000, generator=generator, dtype=torch.float64)
    sums = torch.rand(1000, generator=generator, dtype=torch.float64)
    sizes = torch.arange(1, 1001)
    found = selections(weight.T @ weight * sums, sums, sizes)
    assert torch.equal(found.sum(1), sizes)


def test_units_that_no_layer_adds_up_are_refused() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
            self.table = nn.Parameter(torch.randn(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x).relu()
            return hidden @ self.table + self.head(hidden)

    with pytest.raises(ScoreError, match="`body`, which is read by `table` in a call that is no linear"):
        scored(Product(), torch.randn(4, 3))


def test_silent_units_score_zero() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        model[0].weight[1:3], model[0].bias[1:3] = 0, -1
    found = scored(model, torch.randn(50, 3, dtype=torch.float64))["0"]
    assert (found == 0).tolist() == [False, True, True, False, False]
