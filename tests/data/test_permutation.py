"""A random order that is worked out place by place is one: each number once, and in no order."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecli.data.permutation import Permutation


@given(st.integers(1, 300), st.integers(0, 2**63 - 1))
def test_each_number_is_there_once(count: int, seed: int) -> None:
    order = Permutation(count, seed)
    assert sorted(order) == list(range(count))
    assert order[:] == list(order)
    assert order[count // 3 : count // 2] == list(order)[count // 3 : count // 2]


def test_seeds_differ_and_neighbours_part() -> None:
    one, other = Permutation(100_000, 1)[:1000], Permutation(100_000, 2)[:1000]
    assert one == Permutation(100_000, 1, length=1000)[:]
    assert len(set(one) & set(other)) < 40  # ten by chance
    assert abs(sum(one) / 1000 - 50_000) < 5_000
    assert sum(abs(left - right) == 1 for left, right in zip(one, one[1:], strict=False)) < 5


def test_there_are_as_many_as_wanted() -> None:
    order = Permutation(50, 0, length=80)
    assert (len(order), len(Permutation(50, 0, length=20))) == (50, 20)
    with pytest.raises(IndexError):
        order[50]


def test_its_memory_does_not_depend_on_how_many_there_are() -> None:
    tracemalloc.start()
    order = Permutation(10**12, 0)
    for start in range(0, 10**12, 10**10):
        assert all(0 <= each < 10**12 for each in order[start : start + 64])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000
