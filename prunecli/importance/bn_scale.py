"""`bn-scale`: how much a normalisation amplifies a unit."""

from __future__ import annotations

import torch

from prunecli.graph.structure import Group, Member, Role
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import unit_sums
from prunecli.importance.registry import Needs, method


@method("bn-scale", needs=Needs.PARAMETERS, source="Molchanov et al., 2019, BN scale; Liu et al., 2017")
class BNScale:
    """Absolute scale that the normalisation behind each unit's layer gives it: |gamma|.

    Where several producers share the units (residual stages), their |gamma| add up.
    """

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return the scales of the normalisations behind the producers."""
        return tuple(member for member in group.producers if member.role is Role.SCALE)

    def refuse(self, group: Group) -> str | None:
        """Refuse units that no normalisation scales."""
        return None if self.members(group) else "has no normalisation with a scale behind its layer"

    def observe(self, batch: Observed) -> State:
        """Return the sums of absolute scales."""
        return State(
            {
                group.name: unit_sums(group, self.members(group), torch.abs, batch.parameters)
                for group in batch.groups
            }
        )

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the sums, which are finished."""
        return total.values
