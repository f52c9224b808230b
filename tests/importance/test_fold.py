"""The walk over members, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunecli.graph.structure import Group, Member, Role, Side
from prunecli.importance.fold import position_table, unit_sums
from tests.structures import member


@given(st.data())
def test_agrees_with_plain_loops(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    dim = data.draw(st.integers(0, len(shape) - 1))
    width = data.draw(st.integers(1, 4))
    owned = data.draw(st.permutations(range(shape[dim])))[: data.draw(st.integers(0, shape[dim]))]
    units = [data.draw(st.integers(0, width - 1)) for _ in owned]
    one = Member("t", dim, np.array(owned, int), np.array(units, int), Role.WEIGHT, Side.PRODUCER, False)
    tensor = torch.arange(float(np.prod(shape))).reshape(shape)
    twice = torch.full_like(tensor, 2.0)
    expected = [0.0] * width
    for position, unit in zip(owned, units, strict=True):
        expected[unit] += 2 * float(tensor.select(dim, position).sum())
    found = unit_sums(Group("g", width, (one,)), [one], torch.mul, {"t": tensor}, {"t": twice})
    assert found.tolist() == expected


def test_a_tensor_touched_along_two_dimensions_counts_along_each() -> None:
    rows, columns = (member("w", dim, "weight", "producer", 2) for dim in (0, 1))
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    group = Group("g", 2, (rows, columns))
    assert unit_sums(group, group.members, torch.abs, {"w": tensor}).tolist() == [3 + 4, 7 + 6]


def test_sums_in_float64() -> None:
    one = member("w", 0, "weight", "producer", 1)
    tensor = torch.tensor([[1e8, 1.0, -1e8]])
    found = unit_sums(Group("g", 1, (one,)), [one], torch.neg, {"w": tensor})
    assert (found.dtype, found.tolist()) == (torch.float64, [-1.0])


@pytest.mark.parametrize("dim", (0, 1))
def test_large_tensors_are_folded_piece_by_piece(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunecli.importance.fold._PIECE_ON_CPU", 16)
    sizes = []

    def watched(entries: Tensor) -> Tensor:
        sizes.append(entries.numel())
        return entries

    tensor = torch.randn(7, 7, 2, dtype=torch.float64)
    one = member("w", dim, "weight", "producer", 7)
    found = unit_sums(Group("g", 7, (one,)), [one], watched, {"w": tensor})
    torch.testing.assert_close(found, tensor.sum([1 - dim, 2]))
    assert sizes == [14] * 7


@pytest.mark.parametrize(
    ("units", "table"), (([0, 0, 1, 1], [[0, 1], [2, 3]]), ([1, 0, 1, 1], [[1, 4, 4], [0, 2, 3]]))
)
def test_table_of_positions(units: list[int], table: list[list[int]]) -> None:
    one = Member("t", 0, np.arange(4), np.array(units), Role.WEIGHT, Side.CONSUMER, False)
    assert position_table(one, 2, 4).tolist() == table
