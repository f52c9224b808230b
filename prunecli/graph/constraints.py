"""What a forward pass says about atoms: which go together, which may not go at all.

An *atom* is an integer that stands for one index of one dimension of one parameter or buffer. Atoms
of tensors that a trace meets are combined by three kinds of statement:

    tie      a = b            one goes exactly when the other goes
    grid     s = a OR b       a dimension split in two: a position goes when its row or its column goes
    freeze   a never goes     with the reason, for the user

Atom 0 is frozen from the start and stands for positions that hold nothing removable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Atoms: TypeAlias = NDArray[np.int64]
FROZEN_ATOM: Final = 0
IS_OUTPUT: Final = "is an output of the network"
IS_LOOKED_UP: Final = "is looked up by data"


class Uniform(Enum):
    """The label of a dimension along which nothing varies: a broadcast, a constant fill."""

    UNIFORM = "uniform"


UNIFORM: Final = Uniform.UNIFORM

Label: TypeAlias = Atoms | None | Literal[Uniform.UNIFORM]
"""What a dimension of a tensor holds: one atom per position, nothing known (None), or a constant."""

Labels: TypeAlias = tuple[Label, ...]


@dataclass(frozen=True)
class Reason:
    """Why something cannot be cut, in plain words, and where that came up.

    `expected` marks what every network has (its inputs, outputs and kernel sizes), so that a listing
    can leave it out.
    """

    text: str
    module: str = ""
    op: str = ""
    expected: bool = False


@dataclass(frozen=True, eq=False)
class Grid:
    """`cells[p, q]` goes when `rows[p]` or `columns[q]` goes."""

    cells: NDArray[np.int64]
    rows: Atoms
    columns: Atoms


@dataclass
class Constraints:
    """The statements collected so far."""

    count: int = 1
    ties: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    freezes: list[tuple[Atoms, Reason]] = field(
        default_factory=lambda: [(np.array([FROZEN_ATOM]), Reason("joined to positions without parameters"))]
    )
    statistics: list[Atoms] = field(default_factory=list)
    """Dimensions that a mean, a norm or a normalisation runs over."""

    def __post_init__(self) -> None:
        self._runs: dict[int, Atoms] = {}  # by identity; held, so that it stays their own

    def fresh(self, length: int) -> Atoms:
        """Return `length` new atoms: a run of integers, none of them atom 0."""
        atoms = np.arange(self.count, self.count + length, dtype=np.int64)
        self.count += length
        if length:
            self._runs[id(atoms)] = atoms
        return atoms

    def is_run(self, atoms: Atoms) -> bool:
        """Return whether this very label was made by `fresh`: it shares no atom with any other such label."""
        return id(atoms) in self._runs

    def tie(self, left: Atoms, right: Atoms, reason: Reason) -> None:
        """State that equal positions go together; a position tied to atom 0 is frozen for `reason`."""
        if left is right or self.tie_runs(left, right):
            return
        frozen = (left == FROZEN_ATOM) | (right == FROZEN_ATOM)
        if frozen.any():
            self.freeze(np.concatenate([left[frozen], right[frozen]]), reason)
            left, right = left[~frozen], right[~frozen]
        differs = left != right
        if differs.any():
            self.ties.append((left[differs], right[differs]))

    def tie_runs(self, left: Atoms, right: Atoms) -> bool:
        """Tie two labels if both were made by `fresh`; return whether they were."""
        are_runs = left.size == right.size and id(left) in self._runs and id(right) in self._runs
        if are_runs:
            self.ties.append((left, right))
        return are_runs

    def freeze(self, atoms: Atoms, reason: Reason) -> None:
        """State that these positions never go."""
        if id(atoms) not in self._runs:
            atoms = atoms[atoms != FROZEN_ATOM]
        if atoms.size:
            self.freezes.append((atoms, reason))

    def freeze_first(self, atoms: Atoms, reason: Reason) -> None:
        """Freeze for a reason that is told before those found while tracing."""
        self.freezes.insert(0, (atoms, reason))

    def onwards(self) -> Constraints:
        """Return a place for further statements, of these atoms and of new ones, to be added later."""
        later = Constraints(self.count, freezes=[])
        later._runs = self._runs
        return later

    def extend(self, others: Constraints) -> None:
        """Add what was stated of these atoms and of new ones, which go on from the last of these."""
        self.count = others.count
        self.ties += others.ties
        self.grids += others.grids
        self.freezes += others.freezes
        self.statistics += others.statistics

    def split(self, cells: NDArray[np.int64]) -> list[Atoms]:
        """Split a labelled grid into one label per dimension, outermost first."""
        if cells.ndim == 1:
            return [cells]
        inner = self.fresh(cells.shape[-1])
        if cells.ndim == 2:
            outer = self.fresh(cells.shape[0])
            self.grids.append(Grid(cells, outer, inner))
            return [outer, inner]
        rows = self.fresh(int(np.prod(cells.shape[:-1])))
        self.grids.append(Grid(cells.reshape(rows.size, -1), rows, inner))
        return [*self.split(rows.reshape(cells.shape[:-1])), inner]

    def merge(self, labels: list[Atoms]) -> NDArray[np.int64]:
        """Join labels into the grid of their combinations: the opposite of `split`."""
        cells = labels[0]
        for columns in labels[1:]:
            rows = cells.reshape(-1)
            joined = self.fresh(rows.size * columns.size).reshape(rows.size, columns.size)
            self.grids.append(Grid(joined, rows, columns))
            cells = joined.reshape(*cells.shape, columns.size)
        return cells
