"""`taylor-fo-weight`: the first-order change of the loss, weight by weight."""

from __future__ import annotations

from torch import Tensor

from prunecli.graph.structure import Group, Member, Role
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import unit_sums
from prunecli.importance.registry import Needs, method


@method(
    "taylor-fo-weight",
    needs=Needs.GRADIENTS | Needs.LABELS,
    passes="1",
    source="Molchanov et al., 2019, on weights",
)
class TaylorFOWeight:
    """Sum of squared weight x gradient over each unit's weights, averaged over micro-batches.

    score = mean over t of sum over s of (w_s * dE_t/dw_s)^2, over the weights s that make the unit,
    without biases. The square is taken per weight because the plain sum tends to 0 at convergence.
    """

    def members(self, group: Group) -> tuple[Member, ...]:
        """Return the weights that make the units."""
        return tuple(member for member in group.producers if member.role is Role.WEIGHT)

    def refuse(self, group: Group) -> str | None:
        """Refuse units that no weight makes."""
        return None if self.members(group) else "has no weights that make its units"

    def observe(self, batch: Observed) -> State:
        """Return the sums of squares of one micro-batch."""
        energies = {
            group.name: unit_sums(
                group, self.members(group), _squared_product, batch.parameters, batch.gradients
            )
            for group in batch.groups
        }
        return State(energies)

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the mean over micro-batches."""
        return {name: energy / batches for name, energy in total.values.items()}


def _squared_product(weight: Tensor, gradient: Tensor) -> Tensor:
    return (weight * gradient).square()
