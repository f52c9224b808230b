"""`taylor-so` and `obd`: what the loss would change, to second order, if a gate on the unit closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from torch import Tensor

from prunecli.errors import UsageError
from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.curvature import Hessian
from prunecli.importance.fold import with_count
from prunecli.importance.gates import OnGates
from prunecli.importance.registry import Needs, method

_HESSIAN = (
    "How second derivatives are found: Gauss-Newton (exact-gn: a backward pass per class), a second backward "
    "pass per unit (exact), random probes (hutchinson); auto: exact-gn for nets of ReLUs, else exact."
)
_DRAWS = "How many random probes per micro-batch, for hutchinson."


class Average(str, Enum):
    """Whether changes of the loss are averaged over micro-batches before they are squared, or after."""

    BEFORE = "before"
    AFTER = "after"


class _Curved(OnGates):
    """What both share: they look at the curvature in gates."""

    draws: int

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            UsageError: Naming the argument.
        """
        if self.draws < 1:
            raise UsageError(f"`draws` is a whole number from 1 on, not {self.draws}.")


@method(
    "taylor-so",
    needs=Needs.GATES | Needs.CURVATURE | Needs.LABELS,
    passes="K + 1",
    source="Molchanov et al., 2019, eq. 8 with the diagonal of the Hessian",
)
@dataclass(frozen=True)
class TaylorSO(_Curved):
    """Squared change of the loss that a second-order Taylor expansion in the unit's gate predicts.

    score = mean over t of (h_t - H_t / 2)^2, with h_t = dE_t/dz and H_t = d^2 E_t/dz^2 at z = 1 for a
    gate z that multiplies the unit, and E_t the mean loss of micro-batch t: exactly (E(z = 0) - E)^2
    where the loss is quadratic in the gate. The paper prints the whole Hessian row times the whole
    vector, which is no Taylor term; its code takes the diagonal, as this does.

    Where the network is piecewise linear (ReLU, eval mode), H costs one backward pass per class of
    the output (K); elsewhere one second backward pass per unit.
    """

    average: Annotated[Average, "Average over micro-batches before or after squaring."] = Average.AFTER
    hessian: Annotated[Hessian, _HESSIAN] = Hessian.AUTO
    draws: Annotated[int, _DRAWS] = 100

    def observe(self, batch: Observed) -> State:
        """Return the predicted changes of the mean loss, or their squares."""
        first = batch.looked.gate_sums
        second = batch.looked.curvatures(self.hessian, self.draws)
        changes = {group.name: first[group.name] - second[group.name] / 2 for group in batch.groups}
        if self.average is Average.AFTER:
            return State({name: change.square() for name, change in changes.items()})
        return State(
            {name: with_count(change * batch.samples, batch.samples) for name, change in changes.items()}
        )

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the mean of squares, or the square of the mean."""
        if self.average is Average.AFTER:
            return {name: energy / batches for name, energy in total.values.items()}
        return {name: (change / samples).square() for name, (change, samples) in total.values.items()}


@method(
    "obd",
    needs=Needs.GATES | Needs.CURVATURE | Needs.LABELS,
    passes="K + 1",
    source="LeCun et al., 1990; Molchanov et al., 2019, on gates",
    signed=True,
)
@dataclass(frozen=True)
class OBD(_Curved):
    """Change of the loss that the curvature in the unit's gate predicts, as if gradients were zero.

    score = 1/2 d^2 E/dz^2 at z = 1, the mean over samples, signed: negative where removing the unit
    promises a lower loss. It is exactly E(z = 0) - E at the minimum of a quadratic loss. With the
    normalisations in eval mode a network of ReLUs has no negative ones.
    """

    hessian: Annotated[Hessian, _HESSIAN] = Hessian.AUTO
    draws: Annotated[int, _DRAWS] = 100

    def observe(self, batch: Observed) -> State:
        """Return the curvatures of the mean loss, weighted by samples."""
        found: Mapping[str, Tensor] = batch.looked.curvatures(self.hessian, self.draws)
        return State(
            {
                group.name: with_count(found[group.name] / 2 * batch.samples, batch.samples)
                for group in batch.groups
            }
        )

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the mean over samples."""
        return {name: change / samples for name, (change, samples) in total.values.items()}
