"""`magnitude` and `magnitude-l1`: how large the weights are that make a unit."""

from __future__ import annotations

import torch

from prunecli.graph.structure import Group, Member, Role
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import unit_sums
from prunecli.importance.registry import Needs, method


class _OfWeights:
    """What both norms share: they read the weights that make the units, and no bias."""

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return the weights that make the units."""
        return tuple(member for member in group.producers if member.role is Role.WEIGHT)

    def refuse(self, group: Group) -> str | None:
        """Refuse units that no weight makes."""
        return None if self.members(group) else "has no weights that make its units"


@method("magnitude", needs=Needs.PARAMETERS, source="Molchanov et al., 2019, weight magnitude")
class Magnitude(_OfWeights):
    """L2 norm of the weights that make each unit.

    score = sqrt(sum of w^2), over the weights w of all producers of the unit, without biases.
    """

    def observe(self, batch: Observed) -> State:
        """Return the sums of squares."""
        return State(
            {
                group.name: unit_sums(group, self.members(group), torch.square, batch.parameters)
                for group in batch.groups
            }
        )

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the norms."""
        return {name: energy.sqrt() for name, energy in total.values.items()}


@method("magnitude-l1", needs=Needs.PARAMETERS, source="Li et al., 2017, sum of absolute weights")
class MagnitudeL1(_OfWeights):
    """L1 norm of the weights that make each unit.

    score = sum of |w|, over the weights w of all producers of the unit, without biases.
    """

    def observe(self, batch: Observed) -> State:
        """Return the norms."""
        return State(
            {
                group.name: unit_sums(group, self.members(group), torch.abs, batch.parameters)
                for group in batch.groups
            }
        )

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the norms, which are finished."""
        return total.values
