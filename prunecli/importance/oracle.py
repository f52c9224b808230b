"""`oracle`: what the loss really changes when a unit is switched off."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import torch

from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import with_count
from prunecli.importance.gates import OnGates
from prunecli.importance.registry import Needs, method


class Aggregate(str, Enum):
    """What changes of the loss are made into one number by."""

    DATASET_SQ = "dataset-sq"  # the square of the change on the whole sample
    BATCH_ABS = "batch-abs"  # the mean over micro-batches of the absolute change


@method(
    "oracle",
    needs=Needs.LOSSES | Needs.LABELS,
    passes="1 + 1 per unit",
    source="Molchanov et al., 2019, eq. 3",
)
@dataclass(frozen=True)
class Oracle(OnGates):
    """Squared change of the loss when the unit alone is switched off, measured unit by unit.

    score = (E(z = 0) - E(z = 1))^2 for a gate z that multiplies the unit, with E the mean loss on the
    whole sample. With `aggregate=batch-abs` it is the mean over micro-batches t of |E_t(z = 0) - E_t|,
    as the paper's code has it: the two rank differently, and a criterion agrees with the one that
    aggregates as it does. Only what a unit influences is computed again.
    """

    aggregate: Annotated[
        Aggregate,
        "The square of the change on the whole sample, or the mean absolute change of a micro-batch.",
    ] = Aggregate.DATASET_SQ

    def observe(self, batch: Observed) -> State:
        """Return the changes of the micro-batch's mean loss, weighted, or their absolute values."""
        each = {group.name: torch.eye(group.width, dtype=torch.int64) for group in batch.groups}
        found = {g.name: batch.looked.changes_without(g, each[g.name]) for g in batch.groups}
        if self.aggregate is Aggregate.BATCH_ABS:
            return State({name: change.abs() for name, change in found.items()})
        return State(
            {name: with_count(change * batch.samples, batch.samples) for name, change in found.items()}
        )

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the square of the mean change, or the mean of absolute changes."""
        if self.aggregate is Aggregate.BATCH_ABS:
            return {name: change / batches for name, change in total.values.items()}
        return {name: (change / samples).square() for name, (change, samples) in total.values.items()}
