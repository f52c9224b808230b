"""Structure + kept units -> the structure of the smaller model, without tracing it again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from prunecli.graph.structure import Axis, CallKey, Group, Kept, Member, Owner, Site, Structure, TensorAxes

_Place = tuple[CallKey, "int | None", int]
"""A dimension of a tensor in the forward pass: the call, which operand, and which of its dimensions."""


def restrict(structure: Structure, kept: Kept) -> Structure:
    """Return what `find_groups` finds on `cut(model, structure, kept)`: all that is left, counted anew.

    Cutting over and over (while a network trains) needs no trace this way.
    """
    smaller = _Smaller(structure, kept)
    tensors = {name: smaller.tensor(tensor) for name, tensor in structure.tensors.items()}
    return replace(
        structure,
        groups=tuple(map(smaller.group, structure.groups)),
        tensors=tensors,
        attributes=tuple(replace(each, axis=smaller.axis(each.axis)) for each in structure.attributes),
        cost_terms=tuple(
            replace(term, axes=tuple(map(smaller.axis, term.axes))) for term in structure.cost_terms
        ),
    )


class _Smaller:
    """Maps axes, positions and units of the old structure to those of the new one."""

    def __init__(self, structure: Structure, kept: Kept) -> None:
        self.structure, self.kept = structure, kept
        self.units = {group.name: _numbers(self._stays(group)) for group in structure.groups}
        self.places = _places_kept(structure.groups, kept)
        self._axes: dict[int, Axis] = {}  # one old axis is one new one: what shares it, goes on sharing

    def axis(self, axis: Axis) -> Axis:
        if id(axis) not in self._axes:
            stays = axis.kept(self.kept)
            owners = (self._owner(owner, _numbers(stays)) for owner in axis.owners)
            self._axes[id(axis)] = Axis(int(stays.sum()), tuple(each for each in owners if len(each.units)))
        return self._axes[id(axis)]

    def tensor(self, tensor: TensorAxes) -> TensorAxes:
        axes = tuple(None if axis is None else self.axis(axis) for axis in tensor.axes)
        lengths = (
            length if axis is None else axis.length for length, axis in zip(tensor.shape, axes, strict=True)
        )
        return replace(tensor, shape=tuple(lengths), axes=axes)

    def group(self, group: Group) -> Group:
        return replace(
            group,
            width=int(self._stays(group).sum()),
            members=tuple(self._member(member, group.name) for member in group.members),
            sites=tuple(self._site(site, group.name) for site in group.sites),
        )

    def _stays(self, group: Group) -> NDArray[np.bool_]:
        return self.kept.get(group.name, np.ones(group.width, dtype=bool))

    def _owner(self, owner: Owner, numbers: NDArray[np.int64]) -> Owner:
        return Owner(owner.group, *self._moved(owner.positions, owner.units, owner.group, numbers))

    def _member(self, member: Member, group: str) -> Member:
        axis = self.structure.tensors[member.tensor].axes[member.dim]
        length = self.structure.tensors[member.tensor].shape[member.dim]
        numbers = _numbers(np.ones(length, dtype=bool) if axis is None else axis.kept(self.kept))
        positions, units = self._moved(member.positions, member.units, group, numbers)
        return replace(member, positions=positions, units=units)

    def _site(self, site: Site, group: str) -> Site:
        stays = self.places[site.call, site.operand, site.dim]
        positions, units = self._moved(site.positions, site.units, group, _numbers(stays))
        return replace(site, length=int(stays.sum()), positions=positions, units=units)

    def _moved(
        self, positions: NDArray[np.int64], units: NDArray[np.int64], group: str, numbers: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the new positions and units of those that stay."""
        moved, renamed = numbers[positions], self.units[group][units]
        stay = (moved >= 0) & (renamed >= 0)
        return moved[stay], renamed[stay]


def _numbers(stays: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the new number of everything that stays, and -1 for what goes.

    >>> _numbers(np.array([True, False, True])).tolist()
    [0, -1, 1]
    """
    return np.where(stays, np.cumsum(stays) - 1, -1)


def _places_kept(groups: Iterable[Group], kept: Kept) -> Mapping[_Place, NDArray[np.bool_]]:
    """Return, for each dimension of the forward pass in which units lie, which positions stay.

    Several groups may lie in one (behind a concatenation, or heads and the places in them): a position
    goes when any of its owners goes.
    """
    found: dict[_Place, NDArray[np.bool_]] = {}
    owners: dict[_Place, list[tuple[Site, str]]] = defaultdict(list)
    for group in groups:
        for site in group.sites:
            owners[site.call, site.operand, site.dim].append((site, group.name))
    for place, sites in owners.items():
        stays = np.ones(sites[0][0].length, dtype=bool)
        for site, name in sites:
            if name in kept:
                stays[site.positions[~kept[name][site.units]]] = False
        found[place] = stays
    return found
