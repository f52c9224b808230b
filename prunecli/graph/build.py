"""Trace + Solution -> Structure: names, groups, axes, costs, and which attributes must follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from prunecli.graph.constraints import IS_LOOKED_UP, Atoms, Reason
from prunecli.graph.copying import aliases, members
from prunecli.graph.sizes import find_attributes
from prunecli.graph.solve import Ints, Solution
from prunecli.graph.structure import (
    Axis,
    CostTerm,
    FrozenAxis,
    Group,
    Member,
    Owner,
    Role,
    Side,
    Site,
    Structure,
    TensorAxes,
)
from prunecli.graph.trace import Trace


@dataclass(frozen=True, eq=False)
class Draft:
    """A structure, and where its groups came from: the class of each unit."""

    structure: Structure
    unit_classes: dict[str, Ints]
    solution: Solution

    def groups_of(self, classes: Ints) -> list[str]:
        """Return the names of the groups that own any of these classes, in order."""
        cells, units = self.solution.owners()
        wanted = np.isin(cells, classes)
        touched = set(units[wanted].tolist())
        return [name for name, own in self.unit_classes.items() if touched.intersection(own.tolist())]


def build(trace: Trace, solution: Solution) -> Draft:
    """Name the groups and describe everything in terms of them."""
    columns = _Columns(trace, solution)
    units = _Units(columns, solution)
    groups = _describe_groups(trace, columns, units)
    tensors, parameters = members(trace.model)
    sizes = find_attributes(trace, units.axis_of)
    structure = Structure(
        groups=tuple(groups),
        frozen=(
            *_describe_frozen(trace, columns, solution, parameters),
            *_describe_single(trace, columns, units),
        ),
        tensors=_describe_tensors(trace, columns, units, tensors, parameters),
        aliases=aliases(trace.model),
        attributes=tuple(sizes),
        cost_terms=tuple(_describe_costs(trace, units)),
        rewritten=dict(trace.rewritten),
        follows_training=trace.follows_training,
        outputs=tuple(sorted(trace.findings.outputs)),
        notes=tuple(_notes(trace)),
    )
    return Draft(structure, {name: units.classes[name] for name in units.names}, solution)


@dataclass(frozen=True)
class _Column:
    """One labelled dimension of a parameter or buffer."""

    tensor: str
    dim: int
    atoms: Atoms
    side: Side


class _Columns:
    """All labelled dimensions, in the order of their first use."""

    def __init__(self, trace: Trace, solution: Solution) -> None:
        self.trace, self.solution = trace, solution
        order = {name: place for place, name in enumerate(trace.findings.used)}
        names = sorted(trace.labels, key=lambda name: order.get(name, len(order)))
        consumed, produced = self._sides()
        self.all = [
            _Column(name, dim, label, _side_of(label, consumed, produced))
            for name in names
            for dim, label in enumerate(trace.labels[name])
            if isinstance(label, np.ndarray)
        ]

    def is_layer(self, place: int) -> bool:
        """Return whether a column belongs to a weight that is contracted with data: what has units."""
        roles = self.trace.findings.roles
        return roles.get(self.all[place].tensor) is Role.WEIGHT

    def _sides(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        marks = []
        for labels in (self.trace.findings.consumed, self.trace.findings.produced):
            mark = np.zeros(self.trace.constraints.count, dtype=bool)
            for label in labels:
                mark[label] = True
            for grid in reversed(self.trace.constraints.grids):
                if mark[grid.cells].any():
                    mark[grid.rows] = mark[grid.columns] = True
            marks.append(mark)
        return marks[0], marks[1]


class _Units:
    """Free classes sorted into groups of alike ones."""

    def __init__(self, columns: _Columns, solution: Solution) -> None:
        self.solution = solution
        self._axes: dict[bytes, Axis | None] = {}
        self._axis_of: dict[int, tuple[Atoms, Axis | None]] = {}
        self.classes: dict[str, Ints] = {}
        self._group_of = np.full(solution.class_count, -1, dtype=np.int64)
        self._unit_of = np.zeros(solution.class_count, dtype=np.int64)
        self.names: list[str] = []
        self._sort_into_groups(columns)

    def axis_of(self, atoms: Atoms) -> Axis | None:
        """Return the axis with these positions, or None if nobody owns any of them."""
        known = self._axis_of.get(id(atoms))
        if known is None:
            classes = self.solution.of[atoms]
            key = classes.tobytes()
            if key not in self._axes:
                self._axes[key] = self._new_axis(classes)
            known = self._axis_of[id(atoms)] = (atoms, self._axes[key])  # held, so that its id stays its own
        return known[1]

    def _new_axis(self, classes: Ints) -> Axis | None:
        positions, units = self.solution.units_of(classes)
        groups = self._group_of[units]
        if groups.size and groups[0] >= 0 and (groups == groups[0]).all():  # one group owns them all
            owner = Owner(self.names[groups[0]], positions, self._unit_of[units])
            return Axis(int(classes.size), (owner,))
        known = groups >= 0
        positions, units, groups = positions[known], units[known], groups[known]
        owners = tuple(
            Owner(self.names[group], positions[groups == group], self._unit_of[units[groups == group]])
            for group in np.unique(groups)
        )
        return Axis(int(classes.size), owners) if owners else None

    def _sort_into_groups(self, columns: _Columns) -> None:
        """Group the units that touch the same columns the same number of times.

        The sides of grids count as columns, so that rows and columns of a square grid stay apart.
        """
        if not columns.all:
            return
        grids = [side for grid in columns.trace.constraints.grids for side in (grid.rows, grid.columns)]
        vectors = [column.atoms for column in columns.all] + grids
        lengths = [atoms.size for atoms in vectors]
        place, unit = self.solution.units_of(self.solution.of[np.concatenate(vectors)])
        column_of = np.repeat(np.arange(len(vectors)), lengths)[place]
        position = place - (np.cumsum(lengths) - lengths)[column_of]
        present, first, index = np.unique(unit, return_index=True, return_inverse=True)
        weights = np.random.default_rng(0).integers(1, 2**63, len(vectors), dtype=np.uint64)
        signature = np.zeros(present.size, dtype=np.uint64)
        np.add.at(signature, index, weights[column_of])
        _, kind = np.unique(signature, return_inverse=True)
        rank = np.lexsort((position[first], column_of[first]))
        entries = np.argsort(index, kind="stable")
        start = np.searchsorted(index[entries], np.arange(present.size + 1))
        produces = np.array([column.side is Side.PRODUCER for column in columns.all])
        for places in _runs(kind, rank):
            if len(places) < 2:
                continue
            own = np.unique(column_of[entries[start[places[0]] : start[places[0] + 1]]])
            own = own[own < len(columns.all)]
            if not any(columns.is_layer(int(column)) for column in own):
                continue
            named_after = own[produces[own]] if produces[own].any() else own
            self._add(columns.all[int(named_after[0])].tensor, present[places])

    def _add(self, tensor: str, classes: Ints) -> None:
        base = tensor.rpartition(".")[0] or tensor
        name, count = base, 1
        while name in self.classes:
            count += 1
            name = f"{base}~{count}"
        self._group_of[classes] = len(self.names)
        self._unit_of[classes] = np.arange(classes.size)
        self.names.append(name)
        self.classes[name] = classes

    def groups_along(self, labels: list[Atoms]) -> set[str]:
        """Return the groups that own positions of any of these labels."""
        return {
            owner.group
            for label in labels
            if (axis := self.axis_of(label)) is not None
            for owner in axis.owners
        }


def _runs(kinds: Ints, order: Ints) -> list[Ints]:
    """Return the places of each kind, in this order; kinds in the order of their first place.

    >>> [places.tolist() for places in _runs(np.array([7, 5, 7, 5]), np.array([3, 2, 1, 0]))]
    [[3, 1], [2, 0]]
    """
    ordered = kinds[order]
    _, first, counts = np.unique(ordered, return_index=True, return_counts=True)
    runs = np.split(order[np.argsort(ordered, kind="stable")], np.cumsum(counts)[:-1])
    return [runs[each] for each in np.argsort(first)]


def _side_of(label: Atoms, consumed: NDArray[np.bool_], produced: NDArray[np.bool_]) -> Side:
    return Side.CONSUMER if consumed[label].any() and not produced[label].any() else Side.PRODUCER


def _describe_groups(trace: Trace, columns: _Columns, units: _Units) -> Iterator[Group]:
    found = trace.findings
    members: dict[str, list[Member]] = {name: [] for name in units.names}
    for column in columns.all:
        axis = units.axis_of(column.atoms)
        for owner in axis.owners if axis else ():
            role = found.roles.get(column.tensor, Role.OTHER)
            gated = column.side is Side.PRODUCER and column.tensor in found.gated
            members[owner.group].append(
                Member(column.tensor, column.dim, owner.positions, owner.units, role, column.side, gated)
            )
    changing = units.groups_along(trace.constraints.statistics)
    sites = _describe_sites(trace, units)
    for name in units.names:
        width = int(units.classes[name].size)
        yield Group(name, width, tuple(members[name]), name in changing, tuple(sites[name]))


def _describe_sites(trace: Trace, units: _Units) -> dict[str, list[Site]]:
    """Return group -> where its units appear in the forward pass."""
    sites: dict[str, list[Site]] = {name: [] for name in units.names}
    for each in trace.findings.watched:
        for dim, label in enumerate(each.labels):
            if not isinstance(label, np.ndarray):
                continue
            axis = units.axis_of(label)
            for owner in axis.owners if axis else ():
                at = dim - len(each.labels)
                sites[owner.group].append(
                    Site(
                        each.call, each.kind, each.operand, at, int(label.size), owner.positions,
                        owner.units, each.tensors,
                    )
                )  # fmt: skip
    return sites


def _describe_tensors(
    trace: Trace, columns: _Columns, units: _Units, tensors: Mapping[str, Tensor], parameters: Set[str]
) -> dict[str, TensorAxes]:
    axes = {(column.tensor, column.dim): units.axis_of(column.atoms) for column in columns.all}
    return {
        name: TensorAxes(
            shape=tuple(tensor.shape),
            axes=tuple(axes.get((name, dim)) for dim in range(tensor.dim())),
            role=trace.findings.roles.get(name, Role.OTHER),
            is_parameter=name in parameters,
        )
        for name, tensor in tensors.items()
    }


def _describe_frozen(
    trace: Trace, columns: _Columns, solution: Solution, parameters: Set[str]
) -> Iterator[FrozenAxis]:
    """One entry per layer and reason, for the positions that some layer puts out and that all stay."""
    found: dict[tuple[str, Reason], tuple[list[str], int]] = {}
    for column in columns.all:
        classes = solution.of[column.atoms]
        frozen = classes[solution.is_frozen[classes]]
        is_kernel = column.dim >= 2 and trace.findings.roles.get(column.tensor) is Role.WEIGHT
        if frozen.size and column.side is Side.PRODUCER and column.tensor in parameters and not is_kernel:
            reason = solution.reasons[int(solution.reason_of[frozen].min())]
            layer = column.tensor.rpartition(".")[0] or column.tensor
            tensors, width = found.get((layer, reason), ([], 0))
            found[layer, reason] = [*tensors, column.tensor], max(width, int(frozen.size))
    for (layer, reason), (tensors, width) in found.items():
        if reason.text != IS_LOOKED_UP:
            yield FrozenAxis(
                layer, width, reason.text, reason.module, reason.op, tuple(dict.fromkeys(tensors))
            )


def _describe_single(trace: Trace, columns: _Columns, units: _Units) -> Iterator[FrozenAxis]:
    """Yield the outputs of layers whose positions all go together: one unit, which cannot go."""
    frozen = units.solution.is_frozen
    for place, column in enumerate(columns.all):
        classes = units.solution.of[column.atoms]
        is_output = column.side is Side.PRODUCER and column.dim < 2 and columns.is_layer(place)
        if is_output and units.axis_of(column.atoms) is None and not frozen[classes].any():
            layer = column.tensor.rpartition(".")[0] or column.tensor
            text = "goes all together or not at all: it is a single unit"
            yield FrozenAxis(layer, int(column.atoms.size), text, "", "", (column.tensor,))


def _describe_costs(trace: Trace, units: _Units) -> Iterator[CostTerm]:
    for contraction in trace.findings.contractions:
        coefficient, axes = contraction.coefficient, []
        for label in contraction.labels:
            axis = units.axis_of(label)
            if axis is None:
                coefficient *= int(label.size)
            else:
                axes.append(axis)
        yield CostTerm(contraction.module, contraction.op, coefficient, tuple(axes))


def _notes(trace: Trace) -> Iterator[str]:
    for op, module in sorted(trace.findings.unknown.items()):
        yield f"`{op}` in `{module or 'the model'}` has no rule: everything it touches stays whole"
