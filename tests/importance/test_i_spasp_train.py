"""`i-spasp-train`: scores that keep the selection, and the columns that layers of every kind read."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from prunecli.budget import make_plan
from prunecli.errors import ScoreError, UsageError
from prunecli.graph.groups import find_groups
from prunecli.importance import Scores, score
from prunecli.importance.grams import Place, Read, collect
from prunecli.importance.sparse_columns import Reader, learn
from prunecli.plan import Scope
from tests.structures import conv_norm, mlp, residual


def scored(model: nn.Module, inputs: Tensor, *, micro_batch: int = 64, **arguments: object) -> Scores:
    structure = find_groups(model, (inputs[:1],))
    batches = [((inputs,), torch.zeros(len(inputs), dtype=torch.int64))]
    return score(
        model, structure, batches, methods=["i-spasp-train"], method_args=arguments, micro_batch=micro_batch
    )["i-spasp-train"]


def read_by(model: nn.Module, inputs: Tensor, micro_batch: int = 4) -> dict[str, dict[Place, Read]]:
    structure = find_groups(model, (inputs[:1],))
    batches = [((inputs,), torch.zeros(len(inputs), dtype=torch.int64))]
    found, samples = collect(model, structure, structure.groups, batches, micro_batch=micro_batch)
    assert samples == len(inputs)
    return found


def best(values: Tensor, size: int) -> set[int]:
    return set(values.argsort(descending=True, stable=True)[:size].tolist())


def selected(readers: list[Reader], width: int, size: int) -> set[int]:
    return set(learn(readers, width, size).support.nonzero().flatten().tolist())


@pytest.mark.parametrize(("keep", "size"), ((0.2, 1), (0.5, 3), (0.75, 5), (1.0, 6)))
def test_the_best_scores_are_the_selection_for_the_share(keep: float, size: int) -> None:
    case = mlp()
    (inputs,), _ = case.batch(40)
    hidden, weight = case.model[:2](inputs).T.detach(), case.model[2].weight.detach()
    readers = [Reader(hidden @ hidden.T, weight, torch.arange(6))]
    values = scored(case.model, inputs, keep=keep).by_group["0"]
    assert best(values, size) == selected(readers, 6, size)
    assert int((values >= 1).sum()) == size
    strength = weight.norm(dim=0) * hidden.norm(dim=1)
    torch.testing.assert_close(values % 1, (strength / strength.max() / 2) % 1)


@pytest.mark.parametrize("make", (mlp, conv_norm, residual))
def test_a_plan_of_that_share_keeps_the_selection(make: object) -> None:
    case = make()  # type: ignore[operator]
    (inputs,), _ = case.batch(12)
    scores = scored(case.model, inputs, keep=0.5)
    plan = make_plan(case.structure, scores, budget="keep=0.5", scope=Scope.LAYER)
    for name, values in scores.by_group.items():
        assert set(plan.keep[name]) == set((values >= 1).nonzero().flatten().tolist())


READERS: Mapping[str, nn.Module] = {
    "padded": nn.Conv2d(6, 5, 3, padding=1),
    "strided": nn.Conv2d(6, 5, 3, stride=2, padding=(0, 1), dilation=(1, 2)),
    "same": nn.Conv2d(6, 5, (1, 3), padding="same"),
    "grouped": nn.Conv2d(6, 4, 3, groups=2, padding=2),
    "transposed": nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1),
    "transposed, grouped": nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2),
}


@pytest.mark.parametrize("name", READERS)
def test_columns_of_convolutions_make_what_the_layer_makes(name: str) -> None:
    """For any other weight: |W_t H - U|^2 by the Gram matrix is that of two forward passes."""
    torch.manual_seed(0)
    reader = READERS[name]
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), reader, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = model.append(nn.Linear(reader.out_channels, 3)).double()  # type: ignore[arg-type]
    inputs = torch.randn(6, 2, 7, 6, dtype=torch.float64)
    maps = model[:2](inputs).detach()
    found = read_by(model, inputs)["0"]
    assert [place.weight for place in found] == ["2.weight"] * reader.groups  # type: ignore[operator]
    width = next(iter(found.values())).weight.shape[1]
    for unit in range(width):
        without = maps.clone()
        without[:, unit::width] = 0
        distance = (reader(maps) - reader(without)).square().sum().detach()
        by_gram = 0.0
        for read in found.values():
            gap = torch.where(read.reader.units == unit, read.reader.weight, 0.0)
            by_gram += float((gap @ read.gram * gap).sum())
        assert by_gram == pytest.approx(float(distance), rel=1e-9)


def test_columns_of_a_convolution_are_its_patches() -> None:
    torch.manual_seed(0)
    reader = nn.Conv2d(6, 5, 3, padding=1, stride=2)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), reader, nn.Flatten(), nn.Linear(45, 3)).double()
    inputs = torch.randn(6, 2, 7, 7, dtype=torch.float64)
    patches = unfold(model[:2](inputs).detach(), 3, padding=1, stride=2).transpose(0, 1).flatten(1)
    (read,) = read_by(model, inputs)["0"].values()
    torch.testing.assert_close(read.gram, patches @ patches.T)
    assert torch.equal(read.reader.weight, reader.weight.detach().flatten(1))


def test_columns_behind_a_flatten_are_the_places_of_a_map() -> None:
    case = conv_norm()
    (inputs,), _ = case.batch(9)
    (read,) = read_by(case.model, inputs)["3"].values()
    flat = case.model[:7](inputs).detach()
    torch.testing.assert_close(read.gram, flat.T @ flat)
    assert read.reader.units.tolist() == [unit for unit in range(4) for _ in range(16)]


def test_columns_of_other_groups_are_left_out() -> None:
    class Concat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.left(x).relu(), self.right(x).relu()], 1))

    model = Concat().double()
    inputs = torch.randn(7, 3, dtype=torch.float64)
    found = read_by(model, inputs)
    for name, columns in (("left", slice(0, 4)), ("right", slice(4, 9))):
        hidden = getattr(model, name)(inputs).relu().detach()
        (read,) = found[name].values()
        torch.testing.assert_close(read.gram, hidden.T @ hidden)
        assert torch.equal(read.reader.weight, model.head.weight.detach()[:, columns])


def test_several_readers_are_stacked() -> None:
    case = residual()
    (inputs,), _ = case.batch(12)
    found = read_by(case.model, inputs)["stem"]
    assert [place.weight for place in found] == ["in1.weight", "in2.weight", "head.weight"]
    readers = [read.reader for read in found.values()]
    assert [len(reader.units) for reader in readers] == [54, 54, 6]
    assert best(scored(case.model, inputs, micro_batch=4).by_group["stem"], 3) == selected(readers, 6, 3)


def test_a_layer_that_is_called_twice_has_one_matrix() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x)
            return self.head(hidden.relu()) + self.head(hidden.tanh())

    model = Twice().double()
    inputs = torch.randn(7, 3, dtype=torch.float64)
    (read,) = read_by(model, inputs)["body"].values()
    hidden = model.body(inputs).detach()
    expected = hidden.relu().T @ hidden.relu() + hidden.tanh().T @ hidden.tanh()
    torch.testing.assert_close(read.gram, expected)


def test_a_random_start_follows_the_seed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 6)).double()
    inputs = torch.randn(100, 8, dtype=torch.float64)
    batches = [((inputs,), torch.zeros(100, dtype=torch.int64))]
    structure = find_groups(model, (inputs[:1],))
    arguments = {"start": "random", "iterations": "1", "inner": "0", "keep": "0.2"}

    def found(seed: int) -> Tensor:
        each = score(model, structure, batches, None, ["i-spasp-train"], method_args=arguments, seed=seed)
        assert "selected by `truncate=contribution`" in each["i-spasp-train"].about.notes[0]
        return each["i-spasp-train"].by_group["0"]

    assert torch.equal(found(0), found(0))
    assert not torch.equal(found(0), found(1))


def test_arguments_that_make_no_sense_are_refused() -> None:
    case = mlp()
    (inputs,), _ = case.batch()
    for wrong, message in (
        ({"keep": "0"}, "`keep` is a share above 0 and at most 1, not 0.0"),
        ({"start": "original"}, "`start=original` leads nowhere"),
        ({"inner": "-2"}, "`inner` is a whole number from 0 on, not -2"),
        ({"step": "newton"}, "`step` of `i-spasp-train` is line-search or closed-form, not `newton`"),
    ):
        with pytest.raises(UsageError, match=message):
            scored(case.model, inputs, **wrong)


def test_matrices_that_find_no_room_are_refused() -> None:
    case = conv_norm()
    batches = [case.batch()]
    with pytest.raises(ScoreError, match="`3` is read by `7.weight` in 64 columns: .* `--max-memory`"):
        score(case.model, case.structure, batches, None, ["i-spasp-train"], memory=8 * 64 * 64)


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
