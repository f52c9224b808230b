"""Views and the solver, against going through every element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prunecli.graph.call import Call
from prunecli.graph.constraints import Constraints, Labels, Reason
from prunecli.graph.regroup import regroup
from prunecli.graph.solve import Solution, solve
from prunecli.graph.tracer import Tracer

BREAKS = st.lists(st.integers(0, 1), min_size=4, max_size=4)
FACTORS = st.lists(st.sampled_from((1, 2, 3, 4)), min_size=1, max_size=4)


def cut_shapes(factors: list[int], breaks: list[int]) -> tuple[int, ...]:
    """Multiply runs of factors together."""
    shape = [1]
    for factor, starts in zip(factors, breaks, strict=False):
        if starts:
            shape.append(factor)
        else:
            shape[-1] *= factor
    return tuple(shape)


def gone(labels: Labels, solution: Solution, shape: tuple[int, ...], units: set[int]) -> NDArray[np.bool_]:
    """Return a bool per element: whether it goes when these units go, by plain loops."""
    owners: dict[int, set[int]] = {}
    for cell, unit in zip(*(each.tolist() for each in solution.owners()), strict=True):
        owners.setdefault(cell, set()).add(unit)
    result = np.zeros(shape, dtype=bool)
    for index in np.ndindex(shape):
        for dim, label in enumerate(labels):
            if (
                isinstance(label, np.ndarray)
                and owners.get(int(solution.of[label[index[dim]]]), set()) & units
            ):
                result[index] = True
    return result


@given(
    FACTORS,
    st.lists(st.integers(0, 1), min_size=4, max_size=4),
    st.lists(st.integers(0, 1), min_size=4, max_size=4),
    st.randoms(),
)
def test_a_view_moves_what_goes_with_the_elements(
    factors: list[int], one: list[int], other: list[int], random
) -> None:
    """Whatever units go, the elements that go before a view are those that go after it."""
    shape, new_shape = cut_shapes(factors, one), cut_shapes(factors, other)
    constraints = Constraints()
    labels: Labels = tuple(None if length == 1 else constraints.fresh(length) for length in shape)
    new_labels = regroup(constraints, labels, shape, new_shape)
    solution = solve(constraints)
    every = np.unique(solution.owners()[1]).tolist()
    units = {unit for unit in every if random.random() < 0.3}
    before = gone(labels, solution, shape, units).reshape(new_shape)
    assert np.array_equal(before, gone(new_labels, solution, new_shape, units))


def grid(rows: int, columns: int) -> tuple[Constraints, NDArray[np.int64]]:
    constraints = Constraints()
    return constraints, constraints.fresh(rows * columns).reshape(rows, columns)


REASON = Reason("because")


def test_a_split_has_rows_and_columns_as_units() -> None:
    constraints, cells = grid(2, 3)
    rows, columns = constraints.split(cells)
    solution = solve(constraints)
    units = set(solution.owners()[1].tolist())
    assert units == set(solution.of[rows].tolist()) | set(solution.of[columns].tolist())


def test_a_frozen_row_leaves_its_cells_to_the_columns() -> None:
    constraints, cells = grid(2, 3)
    rows, columns = constraints.split(cells)
    constraints.freeze(rows[:1], REASON)
    solution = solve(constraints)
    assert np.array_equal(solution.of[cells[0]], solution.of[columns])
    assert not np.array_equal(solution.of[cells[1]], solution.of[columns])


def test_a_frozen_cell_freezes_its_row_and_its_column() -> None:
    constraints, cells = grid(2, 3)
    rows, columns = constraints.split(cells)
    constraints.freeze(cells[0, :1], REASON)
    frozen = solve(constraints).is_frozen[solve(constraints).of]
    assert frozen[rows[0]]
    assert frozen[columns[0]]
    assert not frozen[rows[1]]
    assert not frozen[columns[1:]].any()


def test_the_same_split_twice_is_one() -> None:
    constraints, cells = grid(2, 3)
    first, second = constraints.split(cells), constraints.split(cells)
    solution = solve(constraints)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(solution.of[one], solution.of[other])


def test_splits_that_do_not_fit_freeze_the_outer_parts() -> None:
    constraints, cells = grid(2, 6)
    rows, columns = constraints.split(cells)
    other_rows, other_columns = constraints.split(cells.reshape(4, 3))
    solution = solve(constraints)
    frozen = solution.is_frozen[solution.of]
    assert frozen[rows].all()
    assert frozen[other_rows].all()
    assert np.array_equal(solution.of[columns], np.tile(solution.of[other_columns], 2))


def test_a_shuffle_is_not_a_conflict() -> None:
    constraints, cells = grid(2, 3)
    rows, columns = constraints.split(cells)
    shuffled = constraints.merge([columns, rows])
    solution = solve(constraints)
    assert np.array_equal(solution.of[shuffled], solution.of[cells.T])
    assert not solution.is_frozen[solution.of[rows]].any()


def test_ties_carry_the_first_reason() -> None:
    constraints = Constraints()
    one, other = constraints.fresh(3), constraints.fresh(3)
    constraints.tie(one, other, REASON)
    constraints.freeze(other[:1], REASON)
    solution = solve(constraints)
    assert solution.reasons[solution.reason_of[solution.of[one[0]]]] is REASON


@pytest.mark.parametrize("length", (1, 5))
def test_atom_zero_freezes_what_it_is_tied_to(length: int) -> None:
    constraints = Constraints()
    atoms = constraints.fresh(length)
    constraints.tie(atoms, np.zeros(length, dtype=np.int64), REASON)
    solution = solve(constraints)
    assert solution.is_frozen[solution.of[atoms]].all()


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12), st.randoms())
def test_labels_tied_as_wholes_are_joined_like_their_atoms(pairs: list[tuple[int, int]], draw: Any) -> None:
    whole, single = Constraints(), Constraints()
    labels = [whole.fresh(3 + place // 6) for place in range(8)]
    for place in range(8):
        single.fresh(3 + place // 6)
    for left, right in pairs:
        if labels[left].size == labels[right].size:
            whole.tie(labels[left], labels[right], REASON)
            single.tie(labels[left][:], labels[right][:], REASON)  # other objects: tied atom by atom
    part = labels[draw.randrange(8)][:2]
    for constraints in (whole, single):
        constraints.tie(part, np.array([0, labels[7][0]]), REASON)
        constraints.freeze(labels[0][2:], REASON)
    one, other = solve(whole), solve(single)
    assert np.array_equal(one.of, other.of)
    assert np.array_equal(one.reason_of, other.reason_of)


@pytest.mark.parametrize("shape", ((6, 1), (1, 6), (1, 6, 1)))
def test_a_part_of_one_position_splits_nothing(shape: tuple[int, ...]) -> None:
    tracer = Tracer(Constraints(), {}, {}, ())
    label = tracer.constraints.fresh(6)
    parts = Call(tracer, torch.ops.aten.view.default, (), {}).split(label, shape)
    assert [part.size for part in parts] == list(shape)
    solution = solve(tracer.constraints)
    assert np.array_equal(solution.of[parts[shape.index(6)]], solution.of[label])
    assert [bool(solution.is_frozen[solution.of[part]].any()) for part in parts] == [n == 1 for n in shape]
