"""`bn-scale` and `network-slimming`: how much a normalisation amplifies a unit."""

from __future__ import annotations

import torch

from prunecli.graph.structure import Group, Member, Role
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import unit_sums
from prunecli.importance.registry import Needs, method


class _OfScales:
    """What both share: they add up the absolute scales behind the producers of a unit."""

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


@method("bn-scale", needs=Needs.PARAMETERS, source="Molchanov et al., 2019, BN scale; Liu et al., 2017")
class BNScale(_OfScales):
    """Absolute scale that the normalisation behind each unit's layer gives it.

    score = sum of |gamma|, over the normalisations behind the producers of the unit: one of them, but
    where several producers share the units (residual stages).
    """


@method("network-slimming", needs=Needs.PARAMETERS, source="Liu et al., 2017")
class NetworkSlimming(_OfScales):
    """Absolute scale of each unit, meant for networks that were trained to have few large ones.

    score = sum of |gamma|, over the normalisations behind the producers of the unit, ranked over the
    whole network.

    The number is that of `bn-scale`. What makes it tell is how the network was trained: with a penalty
    on the scales, 1e-4 * sum of |gamma|, which drives those of idle units to 0. That is a matter of
    training, not of scoring, and belongs to `train`.
    """
