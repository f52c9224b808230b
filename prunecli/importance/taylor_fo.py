"""`taylor-fo`: what the loss would change, to first order, if a gate on the unit closed."""

from __future__ import annotations

import torch
from torch import Tensor

from prunecli.errors import ScoreError
from prunecli.graph.structure import Group, Member
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import unit_sums
from prunecli.importance.gates import refuse_ungated
from prunecli.importance.look import Look
from prunecli.importance.members import gate_members
from prunecli.importance.registry import Needs, method


@method(
    "taylor-fo",
    needs=Needs.GRADIENTS | Needs.LABELS,
    passes="1",
    source="Molchanov et al., 2019, eq. 9 on gates",
)
class TaylorFO:
    """Squared gradient of a gate on each unit, averaged over micro-batches.

    score = mean over t of h_t^2, with h_t = dE_t/dz at z = 1 for a gate z that multiplies the unit where
    it is last affine, and E_t the mean loss of micro-batch t. No gate is needed to know h: behind a
    normalisation it is gamma * dE/dgamma + beta * dE/dbeta, behind a bare layer the same sum over its
    weights and bias. Producers that share their units (residual stages) share the gate, so their sums
    are added before they are squared. A unit that no such layer makes is measured where it is read:
    the sum over its outgoing weights is the same number.
    """

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return what stands right before the gate, else the weights that read it."""
        return gate_members(group)

    def refuse(self, group: Group) -> str | None:
        """Refuse units that no parameter makes or reads."""
        return None if self.members(group) else "has no parameter from which a gate's gradient follows"

    def observe(self, batch: Observed) -> State:
        """Return the squared gate gradients of one micro-batch."""
        if batch.look is not None and batch.look.conditions.is_parted:
            return State({group.name: self._by_gates(group, batch.look).square() for group in batch.groups})
        energies = {}
        for group in batch.groups:
            members = self.members(group)
            gate_gradient = unit_sums(group, members, torch.mul, batch.parameters, batch.gradients)
            energies[group.name] = gate_gradient.square()
        return State(energies)

    def _by_gates(self, group: Group, look: Look) -> Tensor:
        """Return the same from a gate, where gradients of parameters are not to be had."""
        if group.name not in look.gate_sums:
            raise ScoreError(
                f"`taylor-fo` cannot score `{group.name}` under `--shard`: it {refuse_ungated(group)}. Leave "
                f"it alone with `--ignore {group.name}`, or use `magnitude`."
            )
        return look.gate_sums[group.name]

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the mean over micro-batches."""
        return {name: energy / batches for name, energy in total.values.items()}
