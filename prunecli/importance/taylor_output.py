"""`taylor-output`: activation times gradient, averaged over places, per layer on one scale."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from torch import Tensor

from prunecli.importance.context import Observed, State, UnitValues
from prunecli.importance.fold import with_count
from prunecli.importance.gates import OnGates
from prunecli.importance.look import Products
from prunecli.importance.registry import Needs, method


class Absolute(str, Enum):
    """What is averaged before the absolute value is taken."""

    SPATIAL = "spatial"  # places: one number per sample
    ELEMENT = "element"  # nothing
    END = "end"  # places, samples and micro-batches


@method(
    "taylor-output",
    needs=Needs.GATES | Needs.LABELS,
    passes="1",
    source="Molchanov et al., 2017, as the baseline of 2019",
)
@dataclass(frozen=True)
class TaylorOutput(OnGates):
    """Absolute mean of activation times gradient over places, averaged over samples, layers normalised.

    score = mean over samples b of |mean over places p of a_bp dE_b/da_bp|, divided by the L2 norm of
    the layer's scores (+ 1e-8), where a is the unit's output as a gate would multiply it. Units that
    several layers make (residual stages) count with the sum over these layers.
    """

    absolute: Annotated[
        Absolute, "What is averaged before the absolute value: places, nothing, or everything."
    ] = Absolute.SPATIAL

    def observe(self, batch: Observed) -> State:
        """Return sums over samples, and the number of samples."""
        products = batch.looked.gate_products
        return State({group.name: self._sums(products[group.name], batch.samples) for group in batch.groups})

    def finish(self, total: State, batches: int) -> UnitValues:
        """Return the means, each layer divided by its norm."""
        means = {name: (found / samples).abs() for name, (found, samples) in total.values.items()}
        return {name: mean / (mean.square().sum().sqrt() + 1e-8) for name, mean in means.items()}

    def _sums(self, product: Products, samples: int) -> Tensor:
        match self.absolute:
            case Absolute.SPATIAL:
                found = product.mean.abs().sum(0)
            case Absolute.ELEMENT:
                found = product.mean_absolute.sum(0)
            case Absolute.END:
                found = product.mean.sum(0)
        return with_count(found, samples)
