"""What a network costs, in units, MACs or parameters, as arrays: dense, per unit, and step by step.

The cost is a sum of terms, each a coefficient times the kept lengths of some axes. A position of an axis
goes as soon as any of its owners goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_never

from prunecli.budget.amounts import Currency
from prunecli.graph.structure import Axis, Owner, Structure

Ranks = Mapping[str, NDArray[np.int64]]
"""Group name -> per unit the step at which it goes."""


@dataclass(frozen=True, eq=False)
class CostModel:
    """The terms of one currency, over axes that are numbered."""

    axes: tuple[Axis, ...]
    coefficients: NDArray[np.int64]
    factors: NDArray[np.int64]
    """Numbers of each term's axes, [terms, most axes], filled up with `len(axes)`, which stands for 1."""
    widths: Mapping[str, int]
    """Group name -> how many units it has."""

    def at(self, lengths: NDArray[np.int64]) -> int:
        """Return the cost where the axes have these lengths."""
        with_one = np.append(lengths, 1)
        return int((self.coefficients * with_one[self.factors].prod(axis=1)).sum())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The lengths of the dense axes."""
        return np.array([axis.length for axis in self.axes], dtype=np.int64)

    def freed_by_unit(self) -> dict[str, NDArray[np.float64]]:
        """Return what removing each unit alone from the dense network frees."""
        counts = [_positions_per_unit(axis, self.widths) for axis in self.axes]
        dense = np.append(self.lengths, 1)
        freed: dict[str, NDArray[np.float64]] = {}
        for coefficient, factors in zip(self.coefficients, self.factors, strict=True):
            numbers = [number for number in factors if number < len(self.axes)]
            before = float(coefficient) * float(np.prod(dense[numbers], dtype=np.float64))
            for group in dict.fromkeys(group for number in numbers for group in counts[number]):
                after = np.full(self.widths[group], float(coefficient))
                for number in numbers:
                    after *= dense[number] - counts[number].get(group, 0)
                freed.setdefault(group, np.zeros(self.widths[group]))
                freed[group] += before - after
        return freed


class StepCosts:
    """The cost after any number of removal steps."""

    def __init__(self, model: CostModel, ranks: Ranks) -> None:
        self.model = model
        self._gone_at = [np.sort(_position_ranks(axis, ranks)) for axis in model.axes]

    def after(self, steps: int) -> int:
        """Return the cost once the units ranked below `steps` are gone."""
        gone = [np.searchsorted(ranks, steps) for ranks in self._gone_at]
        return self.model.at(self.model.lengths - np.array(gone, dtype=np.int64))


def cost_model(structure: Structure, currency: Currency) -> CostModel:
    """Return the cost model of a network in a currency."""
    numbers: dict[int, int] = {}
    axes: list[Axis] = []
    coefficients, factors = [], []
    for coefficient, term in _terms(structure, currency):
        coefficients.append(coefficient)
        for axis in term:
            if numbers.setdefault(id(axis), len(axes)) == len(axes):
                axes.append(axis)
        factors.append([numbers[id(axis)] for axis in term])
    most = max((len(term) for term in factors), default=0)
    padded = [[*term, *[len(axes)] * (most - len(term))] for term in factors]
    return CostModel(
        tuple(axes),
        np.array(coefficients, dtype=np.int64),
        np.array(padded, dtype=np.int64).reshape(len(factors), most),
        {group.name: group.width for group in structure.groups},
    )


def _terms(structure: Structure, currency: Currency) -> Iterator[tuple[int, tuple[Axis, ...]]]:
    match currency:
        case Currency.UNITS:
            for group in structure.groups:
                units = np.arange(group.width)
                yield 1, (Axis(group.width, (Owner(group.name, units, units),)),)
        case Currency.MACS:
            for term in structure.cost_terms:
                yield term.coefficient, term.axes
        case Currency.PARAMS:
            for _, tensor in structure.parameters():
                dims = list(zip(tensor.shape, tensor.axes, strict=True))
                uncut = [length for length, axis in dims if axis is None]
                yield int(np.prod(uncut, dtype=np.int64)), tuple(axis for _, axis in dims if axis is not None)
        case _:
            assert_never(currency)


def _positions_per_unit(axis: Axis, widths: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """Return for each owning group how many positions of the axis go with each of its units."""
    return {
        owner.group: np.bincount(owner.units, minlength=widths[owner.group])
        for owner in axis.owners
        if owner.group in widths
    }


def _position_ranks(axis: Axis, ranks: Ranks) -> NDArray[np.int64]:
    """Return the step at which each position goes: with the first of its owners."""
    gone_at = np.full(axis.length, np.iinfo(np.int64).max)
    for owner in axis.owners:
        if owner.group in ranks:
            earlier = np.minimum(gone_at[owner.positions], ranks[owner.group][owner.units])
            gone_at[owner.positions] = earlier
    return gone_at
