"""`bn-scale-taylor`: what the loss would change, to first order, if the scale of a unit went to 0."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import torch

from prunecli.graph.structure import Group, Member, Role
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import unit_sums
from prunecli.importance.members import gate_members
from prunecli.importance.registry import Needs, method

_OF_NORMS = (Role.SCALE, Role.SHIFT)


class MissingBN(str, Enum):
    """What becomes of units that no normalisation scales last."""

    ERROR = "error"
    GATE = "gate"


@method(
    "bn-scale-taylor",
    needs=Needs.GRADIENTS | Needs.LABELS,
    passes="1",
    source="Molchanov et al., 2019, Taylor FO on BN scales",
)
@dataclass(frozen=True)
class BNScaleTaylor:
    """Squared product of each unit's normalisation scale and its gradient, averaged over micro-batches.

    score = mean over t of (gamma * dE_t/dgamma)^2, with E_t the mean loss of micro-batch t and gamma the
    scale of the normalisation that stands last before the unit is read.

    With `bias`, beta * dE_t/dbeta is added before squaring, which gives the gradient of a gate on the
    unit, so the score of `taylor-fo`. Producers that share their units (residual stages) are added up
    before squaring too.
    """

    bias: Annotated[bool, "Add beta * dE/dbeta before squaring."] = False
    missing_bn: Annotated[
        MissingBN,
        "Units made without a normalisation are refused by name (error), or scored as by taylor-fo (gate).",
    ] = MissingBN.ERROR

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return the scales right before the gate; for units without, everything there, if so asked."""
        gated = gate_members(group)
        if any(member.role not in _OF_NORMS for member in gated):
            return gated if self.missing_bn is MissingBN.GATE else ()
        return tuple(member for member in gated if self.bias or member.role is Role.SCALE)

    def refuse(self, group: Group) -> str | None:
        """Refuse units that are made without a normalisation, unless their gates are asked for."""
        if self.members(group):
            return None
        if self.missing_bn is MissingBN.GATE:
            return "has no parameter from which a gate's gradient follows"
        return (
            "has a layer without a normalisation that scales its units last "
            "(`--method-arg missing_bn=gate` scores those as `taylor-fo` does)"
        )

    def observe(self, batch: Observed) -> State:
        """Return the squared sums of one micro-batch."""
        energies = {}
        for group in batch.groups:
            members = self.members(group)
            products = unit_sums(group, members, torch.mul, batch.parameters, batch.gradients)
            energies[group.name] = products.square()
        return State(energies)

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the mean over micro-batches."""
        return {name: energy / batches for name, energy in total.values.items()}
