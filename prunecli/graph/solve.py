"""Constraints -> which atoms are one and the same, which are frozen, and which follow from two others.

The solver works on classes of atoms, in NumPy throughout. It repeats five inferences until nothing
changes; each one only ever merges classes or freezes them, so it ends, and stopping late is safe.

    s = a OR b, s frozen             a and b are frozen
    s = a OR b, a frozen             s is b (and the other way round)
    s = a OR b, t = a OR b           s is t
    s = a OR b, s = c OR d           a is c and b is d, when both grids have the same shape;
                                     otherwise the outer axes a and c are frozen
    s = a OR a                       s is a
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from prunecli.graph.constraints import Constraints, Grid, Reason

Ints = NDArray[np.int64]

SPLIT_CONFLICT = Reason("one dimension is split in two ways that do not fit together")


@dataclass(frozen=True, eq=False)
class Solution:
    """Classes of atoms.

    `of` maps an atom to its class; `reason_of` maps a class to the reason that froze it (an index
    into `reasons`), or to `len(reasons)` where it is free; `cells`, `rows` and `columns` are the
    classes of `cells[i] = rows[i] OR columns[i]`, for free classes only.
    """

    of: Ints
    reason_of: Ints
    reasons: tuple[Reason, ...]
    cells: Ints
    rows: Ints
    columns: Ints

    @cached_property
    def is_frozen(self) -> NDArray[np.bool_]:
        """Bool per class."""
        return self.reason_of < len(self.reasons)

    @property
    def class_count(self) -> int:
        """How many classes there are."""
        return int(self.reason_of.size)

    def owners(self) -> tuple[Ints, Ints]:
        """Return pairs (class, unit): a class goes when any of its units goes.

        A free class that no grid defines is its own unit; one that a grid defines has the units of
        its row and of its column. Frozen classes have none.
        """
        return self._owners

    def units_of(self, classes: Ints) -> tuple[Ints, Ints]:
        """Return pairs (position, unit): a position of `classes` goes when any of its units goes."""
        start, owners = self._by_class
        first = start[classes]
        counts = start[classes + 1] - first
        if (counts == 1).all():
            return np.arange(classes.size), owners[first]
        positions = np.repeat(np.arange(classes.size), counts)
        within = np.arange(positions.size) - np.repeat(np.cumsum(counts) - counts, counts)
        return positions, owners[first[positions] + within]

    @cached_property
    def _by_class(self) -> tuple[Ints, Ints]:
        """Where the units of each class begin, and the units, class by class."""
        cells, units = self._owners
        order = np.argsort(cells, kind="stable")
        return np.searchsorted(cells[order], np.arange(self.class_count + 1)), units[order]

    @cached_property
    def _owners(self) -> tuple[Ints, Ints]:
        defined = np.zeros(self.class_count, dtype=bool)
        defined[self.cells] = True
        units = np.flatnonzero(~defined & ~self.is_frozen)
        done = [np.stack([units, units])]
        pending = _unique_columns(
            np.stack([np.concatenate([self.cells] * 2), np.concatenate([self.rows, self.columns])])
        )
        steps = {cell: list({row, column}) for cell, row, column in self._triples()}
        while pending.size:
            settled = ~defined[pending[1]]
            done.append(pending[:, settled])
            open_pairs = pending[:, ~settled]
            expanded = [(owner, part) for owner, cell in open_pairs.T.tolist() for part in steps[cell]]
            pending = _unique_columns(np.array(expanded, dtype=np.int64).reshape(-1, 2).T)
        pairs = _unique_columns(np.concatenate(done, axis=1))
        return pairs[0], pairs[1]

    def _triples(self) -> list[tuple[int, int, int]]:
        return list(zip(self.cells.tolist(), self.rows.tolist(), self.columns.tolist(), strict=True))


def solve(constraints: Constraints) -> Solution:
    """Find the classes of atoms that the constraints imply."""
    classes = _Classes(constraints)
    while classes.infer():
        pass
    return classes.solution()


class _Classes:
    """The state of the solver: classes so far, and the grids between them."""

    def __init__(self, constraints: Constraints) -> None:
        self.reasons = (*(reason for _, reason in constraints.freezes), SPLIT_CONFLICT)
        whole: list[tuple[Ints, Ints]] = []
        parts: list[tuple[Ints, Ints]] = []
        for left, right in constraints.ties:
            is_whole = constraints.is_run(left) and constraints.is_run(right)
            (whole if is_whole else parts).append((left, right))
        count, self.of = _joined_runs(whole, constraints.count)
        self.reason_of = np.full(count, len(self.reasons), dtype=np.int64)
        for index, (atoms, _) in reversed(list(enumerate(constraints.freezes))):
            self.reason_of[self.of[atoms]] = index
        triples = _flat_triples(constraints.grids)
        self.triples = _unique_columns(np.concatenate([self.of[triples[:3]], triples[3:]]))
        self._merge([(self.of[left], self.of[right]) for left, right in parts])

    def infer(self) -> bool:
        """Draw every inference once; return whether anything changed.

        Whether two grids clash is judged last: the others may yet show that they are the same.
        """
        if not self.triples.size:
            return False
        before = self._size()
        self._drop_settled()
        self._freeze_parts()
        cell, row, column, _ = self.triples
        fits, clashing = self._same_cell()
        self._merge([*self._follow_survivor(), *_same_parts(cell, row, column), *fits])
        if before == self._size() and clashing.size:
            np.minimum.at(self.reason_of, clashing, len(self.reasons) - 1)
        return before != self._size()

    def _drop_settled(self) -> None:
        """Forget grids that say no more than that a class is itself."""
        cell, row, column, _ = self.triples
        frozen = self.reason_of < len(self.reasons)
        settled = ((cell == column) & (frozen[row] | (row == column))) | ((cell == row) & frozen[column])
        self.triples = self.triples[:, ~settled]

    def _size(self) -> tuple[int, int]:
        return self.reason_of.size, int((self.reason_of < len(self.reasons)).sum())

    def _freeze_parts(self) -> None:
        cell, row, column, _ = self.triples
        for part in (row, column):
            np.minimum.at(self.reason_of, part, self.reason_of[cell])

    def _follow_survivor(self) -> list[tuple[Ints, Ints]]:
        cell, row, column, _ = self.triples
        frozen = self.reason_of < len(self.reasons)
        by_column = frozen[row] | (row == column)
        by_row = frozen[column]
        return [(cell[by_column], column[by_column]), (cell[by_row], row[by_row])]

    def _same_cell(self) -> tuple[list[tuple[Ints, Ints]], Ints]:
        """Compare the grids that define one cell: ties if their shapes agree, the outer axes if not."""
        cell, row, column, shape = self.triples
        low, high = np.minimum(row, column), np.maximum(row, column)
        order = np.lexsort((high, low, shape, cell))
        cell, row, column, shape, low, high = (each[order] for each in (cell, row, column, shape, low, high))
        meets = (cell[1:] == cell[:-1]) & ~((low[1:] == low[:-1]) & (high[1:] == high[:-1]))
        fits = meets & (shape[1:] == shape[:-1])
        clash = meets & ~fits
        outer = np.concatenate([row[1:][clash], row[:-1][clash]])
        return [(row[1:][fits], row[:-1][fits]), (column[1:][fits], column[:-1][fits])], outer

    def _merge(self, ties: Sequence[tuple[Ints, Ints]]) -> None:
        """Join tied classes."""
        ties = [pair for pair in ties if pair[0].size]
        if not ties:
            return
        count = self.reason_of.size
        left, right = (np.concatenate(side) for side in zip(*ties, strict=True))
        edges = coo_matrix((np.ones(left.size, dtype=np.int8), (left, right)), shape=(count, count))
        found, new = connected_components(edges, directed=False)
        new = new.astype(np.int64)
        reason_of = np.full(found, len(self.reasons), dtype=np.int64)
        np.minimum.at(reason_of, new, self.reason_of)
        self.of, self.reason_of = new[self.of], reason_of
        if self.triples.size:
            renumbered = np.concatenate([new[self.triples[:3]], self.triples[3:]])
            self.triples = _unique_columns(renumbered)

    def solution(self) -> Solution:
        cell, row, column, _ = self.triples
        live = (cell != row) & (cell != column) & (self.reason_of[cell] == len(self.reasons))
        parts = _unique_columns(self.triples[:3, live])
        return Solution(self.of, self.reason_of, self.reasons, parts[0], parts[1], parts[2])


def _joined_runs(ties: Sequence[tuple[Ints, Ints]], count: int) -> tuple[int, Ints]:
    """Join runs of integers that are tied as wholes: return how many classes there are, and each atom's.

    >>> _joined_runs([(np.array([3, 4]), np.array([1, 2]))], 6)
    (4, array([0, 1, 2, 1, 2, 3]))
    """
    first: dict[int, int] = {}  # the start of a run -> that of an earlier one that it goes with
    lengths: dict[int, int] = {}
    for one, other in ties:
        left, right = _follow(first, int(one[0])), _follow(first, int(other[0]))
        if left != right:
            later = max(left, right)
            first[later], lengths[later] = min(left, right), one.size
    stands_for = np.arange(count, dtype=np.int64)
    for start, length in lengths.items():
        begin = _follow(first, start)
        stands_for[start : start + length] = np.arange(begin, begin + length)
    is_first = stands_for == np.arange(count)
    numbers = np.cumsum(is_first) - 1
    return int(numbers[-1]) + 1, numbers[stands_for]


def _follow(first: dict[int, int], start: int) -> int:
    """Return the earliest run that this one goes with; on the way, shorten the way."""
    while (before := first.get(start)) is not None:
        beyond = first.get(before)
        if beyond is None:
            return before
        first[start] = start = beyond
    return start


def _same_parts(cell: Ints, row: Ints, column: Ints) -> list[tuple[Ints, Ints]]:
    low, high = np.minimum(row, column), np.maximum(row, column)
    order = np.lexsort((high, low))
    cell, low, high = cell[order], low[order], high[order]
    same = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    return [(cell[1:][same], cell[:-1][same])]


def _flat_triples(grids: Sequence[Grid]) -> Ints:
    """Return columns (cell, row, column, number of the grid's shape)."""
    shapes: dict[tuple[int, ...], int] = {}
    parts = [np.empty((4, 0), dtype=np.int64)]
    for grid in grids:
        shape = shapes.setdefault(grid.cells.shape, len(shapes))
        rows = np.broadcast_to(grid.rows[:, None], grid.cells.shape)
        columns = np.broadcast_to(grid.columns[None, :], grid.cells.shape)
        parts.append(
            np.stack([grid.cells.ravel(), rows.ravel(), columns.ravel(), np.full(grid.cells.size, shape)])
        )
    return np.concatenate(parts, axis=1)


def _unique_columns(table: Ints) -> Ints:
    """Return the distinct columns of a small integer table, sorted."""
    if table.shape[1] < 2:
        return table
    table = table[:, np.lexsort(table[::-1])]
    differs = (table[:, 1:] != table[:, :-1]).any(axis=0)
    return table[:, np.concatenate([[True], differs])]
